"""Keys stay below the store, and objects are what their checksums say."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.errors import DataLossError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from saucer.lib.objects import MAX_KEY_LENGTH, Objects, check_key, sha256_of

PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "s3://bucket/a",
        "file:///a",
        "a b",
        "a\\b",
        "a\x00b",
        "a\n",
        "ä",
        "-a",
        "a" * (MAX_KEY_LENGTH + 1),
    ],
)
def test_a_key_that_could_lead_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        check_key(key)
    assert refusal.value.reason == "KEY_INVALID"


@given(st.lists(PART, min_size=1, max_size=5))
def test_a_plain_relative_path_is_a_key_and_stays_below_the_store(parts: list[str]) -> None:
    key = "/".join(parts)
    assert check_key(key) == key
    assert (Path("/store") / key).resolve().is_relative_to("/store")


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(f"file://{tmp_path / 'store'}")


async def test_an_object_is_read_as_it_was_written(objects: Objects, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"b" * 3_000_000)
    assert await objects.put("a/x", b"one") == sha256_of(b"one")
    assert await objects.put("a/y", file) == sha256_of(file)
    assert await objects.get("a/x") == b"one"
    await objects.copy("a/y", "b/y")
    await objects.download("b/y", tmp_path / "back", sha256=sha256_of(file))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert await objects.keys("a") == ["a/x", "a/y"]
    await objects.delete("a/x")
    await objects.delete("a/x")
    assert not await objects.exists("a/x")


async def test_an_object_that_is_not_what_its_checksum_says_is_data_loss_and_leaves_no_file(
    objects: Objects, tmp_path: Path
) -> None:
    await objects.put("a", b"one")
    with pytest.raises(DataLossError):
        await objects.get("a", sha256=sha256_of(b"two"))
    with pytest.raises(DataLossError):
        await objects.download("a", tmp_path / "out", sha256=sha256_of(b"two"))
    for name in ("out", "out.partial"):
        assert not (tmp_path / name).exists()


async def test_the_event_loop_goes_on_while_a_slow_disk_takes_a_file(objects: Objects, tmp_path: Path) -> None:
    data, went_on = b"b" * 3_000_000, threading.Event()
    await objects.put("a", data)
    # What is written into a pipe waits for its reader.
    os.mkfifo(tmp_path / "out.partial")

    def read() -> tuple[bool, bytes]:
        with os.fdopen(pipe, "rb") as file:
            return went_on.wait(10), file.read(len(data))

    pipe = os.open(tmp_path / "out.partial", os.O_RDWR)
    reading = asyncio.create_task(asyncio.to_thread(read))
    download = asyncio.create_task(objects.download("a", tmp_path / "out", sha256=sha256_of(data)))
    await asyncio.sleep(0.2)
    went_on.set()
    assert await reading == (True, data)
    await download


async def test_an_object_over_the_limit_is_not_read_whole_into_memory(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.lib.objects.MAX_WHOLE_BYTES", 3)
    await objects.put("a", b"one")
    await objects.put("b", b"four")
    assert await objects.get("a") == b"one"
    with pytest.raises(ResourceExhaustedError) as refusal:
        await objects.get("b")
    assert refusal.value.reason == "OBJECT_TOO_LARGE"
    assert [chunk async for chunk in objects.stream("b")] == [b"four"]


async def test_an_object_that_is_not_there_is_not_found(objects: Objects) -> None:
    with pytest.raises(NotFoundError):
        await objects.get("nothing/here")


async def test_no_call_takes_a_key_that_leads_elsewhere(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for call in (
        objects.put("../secret", b""),
        objects.get("../secret"),
        objects.exists("../secret"),
        objects.delete("../secret"),
        objects.keys("../"),
        objects.copy("../secret", "a"),
        objects.copy("a", "../secret"),
    ):
        with pytest.raises(InvalidArgumentError):
            await call
    assert (tmp_path / "secret").read_text() == "s"
