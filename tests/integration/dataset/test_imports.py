"""Imports: what becomes a version, what is refused, and who sees it."""

import asyncio
import hashlib
import json
import os
import resource
from pathlib import Path

import asyncpg
import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.service.stores import Stores
from saucer.dataset.v1 import dataset_pb2
from saucer.dataset.v1 import events_pb2 as dataset_events
from saucer.dataset.work import HOUSEKEEPING_S
from saucer.lib.auth import Role
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import new_id
from tests.integration.dataset.client import Client, archive_of, client, coco_files, refusal, write_files, zipped
from tests.integration.dataset.conftest import NewAccount
from tests.support.events import event, publish, read_events, until
from tests.support.services import Running, Tokens
from tests.support.shapes import write_shapes


async def test_an_uploaded_coco_set_becomes_a_version_with_statistics_images_and_events(
    dataset: Client, jetstream: JetStreamContext, tmp_path: Path
) -> None:
    write_shapes(tmp_path / "shapes", train=20, validation=5, test=5)
    work = await dataset.import_bytes(zipped(tmp_path / "shapes"))
    assert (work.state, work.images_done, work.images_total) == (dataset_pb2.IMPORT_STATE_SUCCEEDED, 30, 30)
    version = await dataset.version(work.dataset_version_id)
    statistics = version.statistics
    assert set(version.classes) == {"disc", "bar"}
    assert (statistics.images, statistics.unlabelled_images) == (30, 3)
    assert {split.split: split.images for split in statistics.splits} == {"train": 20, "validation": 5, "test": 5}
    assert sum(row.boxes for row in statistics.classes) == statistics.boxes
    assert sum(row.share for row in statistics.classes) == pytest.approx(1)
    assert 150 <= statistics.median_width <= 260
    assert 0 < statistics.median_box_share < 1

    data = (dataset.store / version.manifest_key).read_bytes()
    assert hashlib.sha256(data).hexdigest() == version.manifest_sha256
    for entry in json.loads(data)["images"]:
        stored = (dataset.store / version.image_prefix / entry["file_name"]).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == entry["file_name"]

    (created,) = await read_events(
        jetstream, f"saucer.dataset.v1.DatasetVersionCreated.{version.account_id}.>", count=1
    )
    assert from_json(created.data, dataset_events.DatasetVersionCreated()).dataset_version == version
    (ended,) = await read_events(jetstream, f"saucer.dataset.v1.ImportEnded.{version.account_id}.>", count=1)
    assert getattr(from_json(ended.data, dataset_events.ImportEnded()), "import") == work


async def test_a_folder_and_an_archive_of_the_accounts_store_are_imported(dataset: Client, store: Path) -> None:
    account = store / "accounts" / dataset.account_id
    files = coco_files(6)
    # Photographs have names that keys made by Saucer may not have.
    files["images/photo (1) ü.png"] = files.pop("images/1.png")
    files["annotations.json"] = files["annotations.json"].replace(b'"1.png"', '"photo (1) ü.png"'.encode())
    write_files(account / "photos/set", files)
    (account / "photos/set.zip").write_bytes(archive_of(coco_files(5, seed=2)))
    from_folder = await dataset.import_path("photos/set/")
    from_archive = await dataset.import_path("photos/set.zip")
    images = [
        (await dataset.version(work.dataset_version_id)).statistics.images for work in (from_folder, from_archive)
    ]
    assert images == [6, 5]


async def test_a_folder_for_each_class_becomes_a_version_of_labelled_images(dataset: Client) -> None:
    pictures = [data for name, data in coco_files(12, seed=9).items() if name.endswith(".png")]
    files = {f"{('cup', 'plate')[number % 2]}/{number}.png": data for number, data in enumerate(pictures)}
    work = await dataset.import_bytes(archive_of(files))
    version = await dataset.version(work.dataset_version_id)
    assert work.report.source_format == dataset_pb2.SOURCE_FORMAT_CLASS_FOLDERS
    assert version.label_kind == dataset_pb2.LABEL_KIND_CLASSES
    assert [(row.class_name, row.images, row.boxes, row.share) for row in version.statistics.classes] == [
        ("cup", 6, 0, 0.5),
        ("plate", 6, 0, 0.5),
    ]
    assert (version.statistics.boxes, version.statistics.unlabelled_images) == (0, 0)
    named = await dataset.import_bytes(archive_of(files), source_format=dataset_pb2.SOURCE_FORMAT_IMAGES)
    assert named.report.source_format == dataset_pb2.SOURCE_FORMAT_IMAGES
    assert (await dataset.version(named.dataset_version_id)).statistics.unlabelled_images == 12


async def test_what_is_refused_of_a_set_is_named_and_the_rest_imported(dataset: Client) -> None:
    files = coco_files(6)
    document = json.loads(files["annotations.json"])
    files["images/1.png"] = b"no picture"
    del files["images/2.png"]
    document["annotations"] += [
        {"id": 100, "image_id": 3, "category_id": 1, "bbox": [900, 900, 5, 5]},
        {"id": 101, "image_id": 3, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 102, "image_id": 3, "category_id": 9, "bbox": [1, 1, 5, 5]},
        {"id": 103, "image_id": 4, "category_id": 1, "bbox": [50, 50, 40, 40]},
    ]
    files["annotations.json"] = json.dumps(document).encode()
    work = await dataset.import_bytes(archive_of(files))
    counts = {row.reason: row.count for row in work.report.counts}
    assert counts == {
        "UNREADABLE_IMAGE": 1,
        "MISSING_IMAGE": 1,
        "IMAGE_REFUSED": 2,
        "BOX_OUTSIDE": 1,
        "BOX_NO_AREA": 1,
        "UNKNOWN_CATEGORY": 1,
    }
    assert work.report.clipped_boxes == 1
    assert "1.png" in {item.item for item in work.report.items}
    assert (await dataset.version(work.dataset_version_id)).statistics.images == 4


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../outside.txt": b"x", **coco_files(1)}, "CLIMBING_PATH"),
        ({"images/1.png": b"x"}, "NO_USABLE_IMAGE"),
        ({"notes.txt": b"x"}, "NO_LABEL_FILE"),
        ({"annotations.json": b"{"}, "NOT_JSON"),
        ({"annotations.json": coco_files(1)["annotations.json"]}, "NO_USABLE_IMAGE"),
        ({"zeros.bin": bytes(100 * 1024**2)}, "COMPRESSION_RATIO"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_archive_is_refused_whole_with_a_reason_and_leaves_nothing(
    dataset: Client, jetstream: JetStreamContext, files: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    work = await dataset.import_bytes(archive_of(files))
    assert (work.state, work.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, reason)
    assert work.error_message.endswith(".")
    assert not (await dataset.versions()).dataset_versions
    assert [file for file in dataset.store.rglob("*") if file.is_file() and "uploads" not in file.parts] == []
    assert not (tmp_path / "outside.txt").exists()
    assert list((tmp_path / "work/imports").iterdir()) == []
    (ended,) = await read_events(jetstream, f"saucer.dataset.v1.ImportEnded.{work.account_id}.>", count=1)
    assert getattr(from_json(ended.data, dataset_events.ImportEnded()), "import").error_reason == reason


async def test_a_label_file_of_ten_million_entries_is_refused_and_the_service_stays_small(dataset: Client) -> None:
    labels = b'{"images":[],"categories":[],"annotations":[' + b"0," * 9_999_999 + b"0]}"
    archive = archive_of({"annotations.json": labels})
    del labels
    before_kb = peak_kb()
    work = await dataset.import_bytes(archive)
    assert work.error_reason == "TOO_MANY_ANNOTATIONS"
    assert peak_kb() - before_kb < 30_000


def peak_kb() -> int:
    """Greatest memory of this process so far, in kB."""
    assert os.uname().sysname == "Linux"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "s3://bucket/a", ".hidden", "a//b", "a b"])
async def test_a_path_that_is_no_key_below_the_accounts_prefix_is_refused(dataset: Client, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.start(store_path=path)
    assert refusal(refused.value) == ("INVALID_ARGUMENT", "KEY_INVALID")


async def test_a_path_with_nothing_there_fails_with_a_reason(dataset: Client) -> None:
    work = await dataset.import_path("nothing/here")
    assert (work.state, work.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, "SOURCE_NOT_FOUND")


async def test_the_same_request_is_the_same_import_and_another_source_a_conflict(dataset: Client) -> None:
    upload_id, request_id = await dataset.upload(archive_of(coco_files(3))), new_id()
    answers = await asyncio.gather(*(dataset.start(upload_id=upload_id, request_id=request_id) for _ in range(4)))
    assert len({answer.import_id for answer in answers}) == 1
    await dataset.end(answers[0].import_id)
    again = await dataset.start(upload_id=upload_id, request_id=request_id)
    assert again.state == dataset_pb2.IMPORT_STATE_SUCCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.start(store_path="a", request_id=request_id)
    assert refusal(refused.value) == ("ALREADY_EXISTS", "REQUEST_ID_USED")
    assert len((await dataset.versions()).dataset_versions) == 1


async def test_the_same_content_is_the_same_version_and_another_split_another(
    dataset: Client, jetstream: JetStreamContext
) -> None:
    archive = archive_of(coco_files(12))
    first, again, other = [await dataset.import_bytes(archive, split_seed=seed) for seed in (1, 1, 2)]
    assert again.dataset_version_id == first.dataset_version_id
    assert other.dataset_version_id != first.dataset_version_id
    found = await dataset.versions(page_size=1)
    assert [version.dataset_version_id for version in found.dataset_versions] == [other.dataset_version_id]
    rest = await dataset.versions(page_size=1, page_token=found.next_page_token)
    assert [version.dataset_version_id for version in rest.dataset_versions] == [first.dataset_version_id]
    assert not rest.next_page_token
    await read_events(jetstream, f"saucer.dataset.v1.ImportEnded.{first.account_id}.>", count=3)
    stream = await jetstream.stream_info("SAUCER", subjects_filter="saucer.dataset.v1.DatasetVersionCreated.>")
    assert sum((stream.state.subjects or {}).values()) == 2


async def test_two_accounts_may_have_the_same_images_and_see_only_their_own(
    dataset: Client, running: Running, tokens: Tokens, new_account: NewAccount, store: Path
) -> None:
    archive = archive_of(coco_files(4))
    work = await dataset.import_bytes(archive)
    stranger = client(running.channel, tokens, await new_account(), store)
    for call in (
        lambda: stranger.get_import(work.import_id),
        lambda: stranger.version(work.dataset_version_id),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert not (await stranger.versions()).dataset_versions
    theirs = await stranger.import_bytes(archive)
    assert theirs.dataset_version_id != work.dataset_version_id
    service = Client(dataset.stub, tokens.metadata(Role.SERVICE), work.account_id, store)
    assert (await service.version(work.dataset_version_id)).account_id == work.account_id


async def test_imports_are_refused_until_the_accounts_store_is_proven_writable(
    running: Running, tokens: Tokens, new_account: NewAccount, jetstream: JetStreamContext, store: Path
) -> None:
    # A file where the folder of all accounts should be: nothing can be written below it.
    (store / "accounts").write_text("in the way")
    account_id = await new_account(proven=False)
    caller = client(running.channel, tokens, account_id, store)
    for call in (lambda: caller.create_upload(10), lambda: caller.start(store_path="a")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        assert refusal(refused.value) == ("FAILED_PRECONDITION", "STORE_NOT_PROVEN")
    (store / "accounts").unlink()
    (proven,) = await read_events(jetstream, f"saucer.dataset.v1.AccountStoreProven.{account_id}.>", count=1)
    body = from_json(proven.data, dataset_events.AccountStoreProven())
    assert (body.account_id, body.prefix, body.revision) == (account_id, f"accounts/{account_id}", 1)

    async def accepted() -> bool:
        return bool((await caller.create_upload(10)).upload_id)

    assert await until(accepted)
    assert list((store / "accounts" / account_id).iterdir()) == []


async def test_a_store_is_proven_while_images_are_counted_for_long(
    dataset: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = asyncio.Event()

    async def count(stores: Stores, account_id: str) -> bool:
        counting.set()
        return bool(await asyncio.Future())

    monkeypatch.setattr(Stores, "count", count)
    database = await asyncpg.connect(database_url)
    await database.execute("UPDATE account_store SET counted_at = NULL")
    await asyncio.wait_for(counting.wait(), 2 * HOUSEKEEPING_S)
    await database.execute("UPDATE account_store SET proven_at = NULL, revision = 0")
    await until(lambda: database.fetchval("SELECT proven_at FROM account_store"), timeout_s=2 * HOUSEKEEPING_S)
    await database.close()


async def test_an_account_that_is_announced_twice_is_proven_once(
    dataset: Client, jetstream: JetStreamContext, new_account: NewAccount
) -> None:
    account_id = dataset.account_id
    created = billing_events.AccountCreated(account=billing_pb2.Account(account_id=account_id))
    await publish(jetstream, event(created, "billing", account_id, None, account_id))
    await new_account()  # events are taken one after the other: the second announcement is through
    stream = await jetstream.stream_info(
        "SAUCER", subjects_filter=f"saucer.dataset.v1.AccountStoreProven.{account_id}.>"
    )
    assert sum((stream.state.subjects or {}).values()) == 1
