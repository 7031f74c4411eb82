"""Child processes for what users brought: bounded, without secrets, and gone when who started them is."""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saucer.lib.confined import ChildDiedError, ChildTimedOutError, confined_child
from saucer.lib.confinement import ChildLimits, first_line
from tests.support.servers import ROOT

MODULE = "tests.support.confined"
LIMITS = ChildLimits(memory_bytes=512 * 1024**2, file_bytes=1024, time_limit_s=30.0)
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"}


async def told(job: dict[str, Any], limits: ChildLimits = LIMITS) -> list[dict[str, Any]]:
    """Every line that it says."""
    async with confined_child(MODULE, job, limits, environment=ENVIRONMENT) as stdout:
        return [json.loads(line) async for line in stdout]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_child_gets_no_environment_but_how_to_find_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUCER_TOKEN", "secret")
    (said,) = await told({})
    assert "PATH" in said["environment"]
    assert not [name for name in said["environment"] if name.startswith("SAUCER")]


async def test_memory_beyond_its_limit_is_refused() -> None:
    _, said = await told({"allocate_bytes": 2 * LIMITS.memory_bytes})
    assert said == {"refused_memory_above": LIMITS.memory_bytes}


async def test_a_file_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    _, said = await told({"write_bytes": 2 * LIMITS.file_bytes, "file": str(file)})
    assert said == {"refused_file": True}
    assert file.stat().st_size == LIMITS.file_bytes


async def test_a_child_that_fails_has_died() -> None:
    with pytest.raises(ChildDiedError, match="ended with 1"):
        await told({"fail": True})


async def test_a_child_that_takes_too_long_is_killed() -> None:
    with pytest.raises(ChildTimedOutError):
        await told({"sleep_s": 60}, replace(LIMITS, time_limit_s=0.5))


async def test_a_timeout_of_the_caller_stays_the_caller_s() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await told({"sleep_s": 60})


async def test_a_child_does_not_outlive_the_block() -> None:
    pids: list[int] = []

    async def fail_at_once() -> None:
        async with confined_child(MODULE, {"sleep_s": 60}, LIMITS, environment=ENVIRONMENT) as stdout:
            pids.append(json.loads(await stdout.readline())["pid"])
            assert is_alive(pids[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_at_once()
    assert not is_alive(pids[0])


async def test_a_child_whose_parent_has_ended_does_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    )
    said, error = await process.communicate(first_line(LIMITS, {}, parent=1))
    assert said == b""
    assert b"has ended" in error
    assert process.returncode == 1
