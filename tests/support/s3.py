"""A real server that speaks S3, over a folder: rclone's."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from saucer.local.ports import choose_port
from tests.support.events import until

BUCKET = "saucer"
# What obstore reads from the environment, as any program of S3's does.
_KEY, _SECRET = "a-key", "a-secret-of-the-tests"


@dataclass(frozen=True)
class S3Server:
    """`folder` is what the store holds; the server sees what is written there beside it late."""

    url: str
    folder: Path


@pytest.fixture
async def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Server]:
    """The environment says where it is and with what keys."""
    folder = tmp_path / "s3" / BUCKET
    folder.mkdir(parents=True)
    port = choose_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    process = await asyncio.create_subprocess_exec(
        *(
            str(Path(sys.executable).with_name("rclone")),
            "serve",
            "s3",
            str(folder.parent),
            "--addr",
            f"127.0.0.1:{port}",
        ),
        *("--auth-key", f"{_KEY},{_SECRET}", "--config", os.devnull, "--log-level", "ERROR"),
    )
    try:
        await until(lambda: _listens(port))
        yield S3Server(f"s3://{BUCKET}/store", folder / "store")
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False
