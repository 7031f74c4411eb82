"""Uploads: in chunks, resumable, by one account only."""

import asyncio
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import grpc
import pytest

from saucer.dataset.domain import ImportRequest
from saucer.dataset.service import Datasets, uploads
from saucer.lib import auth
from saucer.lib.clock import ManualClock
from saucer.lib.errors import FailedPreconditionError
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.lib.postgres import connect, migrate
from tests.integration.dataset.client import Client, client, coco_files, refusal, zipped
from tests.integration.dataset.conftest import NewAccount
from tests.support.servers import NewDatabase
from tests.support.services import Running, Tokens
from tests.support.shapes import write_shapes


async def test_an_upload_that_broke_off_is_resumed_and_imported(dataset: Client, tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", train=12, validation=4, test=4)
    data = zipped(tmp_path / "shapes")
    upload = await dataset.create_upload(len(data))
    half = len(data) // 2
    await dataset.write(upload.upload_id, 0, data[:half])
    so_far = await dataset.get_upload(upload.upload_id)
    assert so_far.committed_bytes == half
    # A client that does not know how far it came may send more than is missing.
    whole = await dataset.write(upload.upload_id, half - 100, data[half - 100 :])
    assert whole.committed_bytes == len(data)
    work = await dataset.end((await dataset.start(upload_id=upload.upload_id)).import_id)
    version = await dataset.version(work.dataset_version_id)
    assert version.statistics.images == 20


async def test_a_chunk_sent_twice_changes_nothing(dataset: Client) -> None:
    upload = await dataset.create_upload(10)
    first = await dataset.write(upload.upload_id, 0, b"01234")
    assert await dataset.write(upload.upload_id, 0, b"01234") == first
    assert (await dataset.write(upload.upload_id, 5, b"56789")).committed_bytes == 10
    assert (await dataset.write(upload.upload_id, 0, b"01234")).committed_bytes == 10


async def test_an_upload_tells_on_request_which_bytes_it_has(dataset: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await dataset.create_upload(10)
    for offset, data in ((0, b"012"), (2, b"234"), (5, b"56")):
        await dataset.write(upload.upload_id, offset, data)
    monkeypatch.setattr(uploads, "CHUNKS_AT_ONCE", 2)
    told: list[tuple[int, int, str]] = []
    for offset in (0, 5, 7):
        chunks = (await dataset.get_upload(upload.upload_id, offset)).chunks
        told += [(chunk.offset_bytes, chunk.size_bytes, chunk.sha256) for chunk in chunks]
    # As they were taken: of one that overlaps, the rest.
    assert told == [
        (offset, len(data), sha256(data).hexdigest()) for offset, data in ((0, b"012"), (3, b"34"), (5, b"56"))
    ]
    assert not (await dataset.get_upload(upload.upload_id)).chunks


async def test_a_gap_is_refused_and_says_where_to_go_on(dataset: Client) -> None:
    upload = await dataset.create_upload(10)
    await dataset.write(upload.upload_id, 0, b"012")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.write(upload.upload_id, 4, b"4")
    assert refusal(refused.value) == ("FAILED_PRECONDITION", "UPLOAD_GAP")
    assert from_rpc(refused.value).metadata["committed_bytes"] == "3"


async def test_bytes_beyond_the_stated_size_are_refused(dataset: Client) -> None:
    upload = await dataset.create_upload(10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.write(upload.upload_id, 0, b"0" * 11)
    assert refusal(refused.value) == ("INVALID_ARGUMENT", "UPLOAD_TOO_LONG")


async def test_of_many_writers_at_one_offset_one_counts_and_the_upload_is_its_bytes(dataset: Client) -> None:
    files = [zipped_data(seed) for seed in range(4)]
    size = min(len(data) for data in files)
    upload = await dataset.create_upload(size)
    answers = await asyncio.gather(*(dataset.write(upload.upload_id, 0, data[:size]) for data in files))
    assert {answer.committed_bytes for answer in answers} == {size}
    work = await dataset.end((await dataset.start(upload_id=upload.upload_id)).import_id)
    # Cut short, or not: but never a mixture, which would be damaged.
    assert work.error_reason != "UPLOAD_DAMAGED"


def zipped_data(seed: int) -> bytes:
    files = coco_files(3, seed=seed)
    return b"".join(files[name] for name in sorted(files))


async def test_the_same_request_is_the_same_upload_and_another_size_a_conflict(dataset: Client) -> None:
    request_id = new_id()
    first, again = await asyncio.gather(dataset.create_upload(10, request_id), dataset.create_upload(10, request_id))
    assert first == again
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.create_upload(11, request_id)
    assert refusal(refused.value) == ("ALREADY_EXISTS", "REQUEST_ID_USED")


async def test_an_upload_that_is_not_whole_is_not_imported(dataset: Client) -> None:
    upload = await dataset.create_upload(10)
    await dataset.write(upload.upload_id, 0, b"012")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.start(upload_id=upload.upload_id)
    assert refusal(refused.value) == ("FAILED_PRECONDITION", "UPLOAD_NOT_WHOLE")


async def test_an_account_has_only_so_many_unfinished_uploads(dataset: Client) -> None:
    for _ in range(20):
        await dataset.create_upload(10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.create_upload(10)
    assert refusal(refused.value) == ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS")


async def test_another_accounts_upload_does_not_exist(
    dataset: Client, running: Running, tokens: Tokens, new_account: NewAccount, store: Path
) -> None:
    upload = await dataset.create_upload(3)
    await dataset.write(upload.upload_id, 0, b"012")
    stranger = client(running.channel, tokens, await new_account(), store)
    for call in (
        lambda: stranger.get_upload(upload.upload_id),
        lambda: stranger.write(upload.upload_id, 0, b"0"),
        lambda: stranger.start(upload_id=upload.upload_id),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        assert refusal(refused.value) == ("NOT_FOUND", "UPLOAD_NOT_FOUND")


async def test_an_upload_that_nobody_finishes_expires_and_its_objects_go(
    new_database: NewDatabase, store: Path
) -> None:
    clock, kept = ManualClock(datetime(2030, 1, 1, tzinfo=UTC)), timedelta(hours=48)
    database = await connect(await new_database(), clock)
    try:
        await migrate(database, "saucer.lib", "saucer.dataset")
        datasets = Datasets(database, Objects(f"file://{store}"), claim=timedelta(seconds=30), uploads_keep=kept)
        account_id, upload_id = new_id(), new_id()
        auth.set_current(auth.Principal("test", auth.Role.EDITOR, account_id, "token", 2e9))
        await datasets.stores.meet(account_id)
        await datasets.stores.prove(account_id, new_id())
        await datasets.uploads.create(upload_id, account_id, 6)
        await datasets.uploads.write(upload_id, 0, b"012")
        clock.advance(kept - timedelta(seconds=1))
        assert await datasets.uploads.sweep() == 0
        await datasets.uploads.write(upload_id, 3, b"345")
        clock.advance(kept - timedelta(seconds=1))
        # An import keeps what it needs.
        await datasets.imports.create(new_id(), ImportRequest(account_id, "A", upload_id, None, 0))
        clock.advance(2 * kept)
        assert await datasets.uploads.sweep() == 0
        assert len(upload_objects(store)) == 2
        assert await datasets.imports.claim(new_id()) is None, "it waited too long, and has failed"
        clock.advance(kept)
        assert await datasets.uploads.sweep() == 1
        assert upload_objects(store) == []
        with pytest.raises(FailedPreconditionError, match="gone"):
            await datasets.uploads.write(upload_id, 6, b"")
        assert await datasets.uploads.sweep() == 0
    finally:
        await database.pool.close()


def upload_objects(store: Path) -> list[Path]:
    return [file for file in store.rglob("*") if file.is_file() and "uploads" in file.parts]
