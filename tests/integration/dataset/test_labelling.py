"""Images listed and read, labels saved, a draft that becomes a version, and the way back to COCO."""

import asyncio
import hashlib
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
import pytest
from nats.js import JetStreamContext

from saucer.dataset.drafts import MAX_OPEN_DRAFTS
from saucer.dataset.labels import MAX_BOXES_PER_IMAGE
from saucer.dataset.v1 import dataset_pb2
from saucer.dataset.v1 import events_pb2 as dataset_events
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import new_id
from tests.integration.dataset.client import Client, archive_of, client, coco_files, refusal
from tests.integration.dataset.conftest import NewAccount, RunDataset
from tests.support.events import read_events, until
from tests.support.services import Running, Tokens


async def imported(dataset: Client, count: int = 12, seed: int = 1) -> str:
    work = await dataset.import_bytes(archive_of(coco_files(count, seed=seed)))
    return work.dataset_version_id


async def unlabelled(dataset: Client, count: int = 12) -> str:
    pictures = {name: data for name, data in coco_files(count, seed=7).items() if name.endswith(".png")}
    return (await dataset.import_bytes(archive_of(pictures))).dataset_version_id


async def refused(call: object) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc] # of whatever call
    return refusal(caught.value)


async def test_images_are_listed_page_by_page_with_their_labels_and_none_is_read(
    dataset: Client, database_url: str
) -> None:
    version_id = await imported(dataset)
    manifest = dataset.manifest(await dataset.version(version_id))
    names = {category["id"]: category["name"] for category in manifest["categories"]}
    expected = {
        entry["id"]: (
            entry["source_name"],
            entry["split"],
            [
                (names[row["category_id"]], *row["bbox"])
                for row in manifest["annotations"]
                if row["image_id"] == entry["id"]
            ],
        )
        for entry in manifest["images"]
    }
    found: dict[int, object] = {}
    token = ""
    while True:
        page = await dataset.list_images(version_id, page_size=5, page_token=token)
        assert len(page.images) <= 5
        for image in page.images:
            boxes = [(box.class_name, box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1) for box in image.boxes]
            found[image.image_id] = image.file_name, image.split, boxes
            assert (image.width, image.height, image.labelled, image.image) == (64, 64, True, b"")
        token = page.next_page_token
        if not token:
            break
    assert found == expected
    assert await reads(database_url, dataset.account_id) == (0, 0)


async def reads(database_url: str, account_id: str) -> tuple[int, int]:
    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow("SELECT reads, bytes FROM image_read WHERE account_id = $1", account_id)
    finally:
        await connection.close()
    return (row["reads"], row["bytes"]) if row else (0, 0)


async def test_images_are_read_only_if_asked_for_and_then_counted(dataset: Client, database_url: str) -> None:
    page = await dataset.list_images(await imported(dataset), include_images=True, page_size=4)
    assert [hashlib.sha256(image.image).hexdigest() for image in page.images] == [i.sha256 for i in page.images]
    counted = (4, sum(len(image.image) for image in page.images))
    assert await reads(database_url, dataset.account_id) == counted
    request = dataset_pb2.ListImageReadsRequest(page_size=1)
    told = await dataset.stub.ListImageReads(request, metadata=dataset.metadata)
    assert [(day.reads, day.bytes) for day in told.image_reads] == [counted]
    assert told.next_page_token == ""


async def test_counts_of_reads_are_paged_by_day(dataset: Client, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    statement = "INSERT INTO image_read VALUES ($1, date '2026-01-01' + $2::integer, $2, 100)"
    await connection.executemany(statement, [(dataset.account_id, day) for day in range(3)])
    await connection.close()
    request = dataset_pb2.ListImageReadsRequest(page_size=2)
    first = await dataset.stub.ListImageReads(request, metadata=dataset.metadata)
    request.page_token = first.next_page_token
    second = await dataset.stub.ListImageReads(request, metadata=dataset.metadata)
    assert [day.day for day in first.image_reads] == ["2026-01-03", "2026-01-02"]
    assert [day.day for day in second.image_reads] == ["2026-01-01"]
    assert second.next_page_token == ""


async def test_a_page_of_images_ends_before_it_is_too_large_to_send(dataset: Client) -> None:
    files = coco_files(4, side=640)
    version_id = (await dataset.import_bytes(archive_of(files))).dataset_version_id
    page = await dataset.list_images(version_id, include_images=True)
    assert len(page.images) == 2
    rest = await dataset.list_images(version_id, include_images=True, page_token=page.next_page_token)
    assert [image.image_id for image in (*page.images, *rest.images)] == [1, 2, 3, 4]


async def test_unlabelled_images_are_labelled_in_a_draft_that_becomes_a_version(dataset: Client) -> None:
    version_id = await unlabelled(dataset)
    draft = await dataset.create_draft(version_id, classes=["cup", "plate"])
    assert (draft.images, draft.unlabelled_images, list(draft.classes)) == (12, 12, ["cup", "plate"])
    waiting = (await dataset.list_images(draft.draft_id, labelled=False)).images
    for number, image in enumerate(waiting[:9]):
        saved = await dataset.save(draft.draft_id, image, (("cup", "plate")[number % 3 == 0], 1.5, 2, 20, 30.25))
        assert [box.x2 for box in saved.boxes] == [20]
    empty = await dataset.save(draft.draft_id, waiting[9])
    assert (empty.labelled, list(empty.boxes)) == (True, [])
    assert (await dataset.get_draft(draft.draft_id)).unlabelled_images == 2
    left = (await dataset.list_images(draft.draft_id, labelled=False)).images
    assert [image.image_id for image in left] == [image.image_id for image in waiting[10:]]

    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    assert (work.state, work.images_done) == (dataset_pb2.IMPORT_STATE_SUCCEEDED, 12)
    assert work.report.source_format == dataset_pb2.SOURCE_FORMAT_DRAFT
    version = await dataset.version(work.dataset_version_id)
    assert (version.statistics.boxes, version.statistics.unlabelled_images) == (9, 2)
    assert {row.class_name: row.boxes for row in version.statistics.classes} == {"cup": 6, "plate": 3}
    assert {row["bbox"][0]: row["bbox"] for row in dataset.manifest(version)["annotations"]} == {
        1.5: [1.5, 2, 18.5, 28.25]
    }
    # The images kept their split and their names; the version they came from is what it was.
    before, after = [
        {entry["file_name"]: (entry["split"], entry["source_name"]) for entry in dataset.manifest(one)["images"]}
        for one in (await dataset.version(version_id), version)
    ]
    assert before == after
    assert (await dataset.version(version_id)).statistics.unlabelled_images == 12


async def test_images_are_listed_by_class_as_their_labels_are_now(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup", "plate", "fork"])
    cup, plate, both, _ = (await dataset.list_images(draft.draft_id)).images[:4]
    await dataset.save(draft.draft_id, cup, ("cup", 1, 1, 9, 9), ("cup", 20, 20, 30, 30))
    plate = await dataset.save(draft.draft_id, plate, ("plate", 1, 1, 9, 9))
    await dataset.save(draft.draft_id, both, ("plate", 1, 1, 9, 9), ("cup", 1, 1, 9, 9))

    async def of_class(class_name: str) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            page = await dataset.list_images(draft.draft_id, class_name=class_name, page_size=1, page_token=token)
            found += [image.image_id for image in page.images]
            token = page.next_page_token
            if not token:
                return found

    assert await of_class("cup") == [cup.image_id, both.image_id]
    assert await of_class("plate") == [plate.image_id, both.image_id]
    assert await of_class("fork") == []
    await dataset.save(draft.draft_id, plate, ("fork", 1, 1, 9, 9))
    assert (await of_class("plate"), await of_class("fork")) == ([both.image_id], [plate.image_id])
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await of_class("spoon")
    assert refusal(unknown.value) == ("INVALID_ARGUMENT", "CLASS_UNKNOWN")


async def test_what_happens_to_a_draft_is_told_with_its_snapshot(dataset: Client, jetstream: JetStreamContext) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup"])
    image = (await dataset.list_images(draft.draft_id)).images[0]
    await dataset.save(draft.draft_id, image, ("cup", 1, 1, 9, 9))
    request = dataset_pb2.DeleteDraftRequest(draft_id=draft.draft_id)
    await dataset.stub.DeleteDraft(request, metadata=dataset.metadata)
    subject = f"saucer.dataset.v1.*.{dataset.account_id}.-.{draft.draft_id}"
    told = await read_events(jetstream, subject, count=3)
    assert [event.type.rpartition(".")[2] for event in told] == ["DraftCreated", "DraftChanged", "DraftDeleted"]
    snapshots = [from_json(event.data, dataset_events.DraftChanged()).draft for event in told]
    assert [snapshot.unlabelled_images for snapshot in snapshots] == [12, 11, 11]
    assert sorted({snapshot.revision for snapshot in snapshots}) == [snapshot.revision for snapshot in snapshots]


@pytest.mark.parametrize("whole_images", [False, True])
async def test_images_of_versions_from_before_there_were_lists_are_listed_at_the_next_start(
    run_dataset: RunDataset,
    database_url: str,
    tokens: Tokens,
    new_account: NewAccount,
    store: Path,
    *,
    whole_images: bool,
) -> None:
    async with run_dataset(database_url=database_url) as running:
        before = client(running.channel, tokens, await new_account(), store)
        if whole_images:
            files = {f"{name[7:8]}/{name[7:]}": data for name, data in coco_files(6).items() if name.endswith(".png")}
            version_id = (await before.import_bytes(archive_of(files))).dataset_version_id
        else:
            draft = await before.create_draft(await imported(before))
            (empty, *_) = (await before.list_images(draft.draft_id)).images
            await before.save(draft.draft_id, empty)
            work = await before.end((await before.start(draft_id=draft.draft_id)).import_id)
            version_id = work.dataset_version_id
        listed = list((await before.list_images(version_id)).images)
        exported = await before.export(version_id)
    assert listed
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM listed_image")
    await connection.close()
    async with run_dataset(database_url=database_url) as running:
        after = client(running.channel, tokens, before.account_id, store)

        async def again() -> list[dataset_pb2.ListedImage]:
            return list((await after.list_images(version_id)).images)

        assert await until(again) == listed
        assert await after.export(version_id) == exported


async def test_a_draft_may_be_split_again_by_what_was_labelled(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup", "plate"])
    for number, image in enumerate((await dataset.list_images(draft.draft_id)).images):
        await dataset.save(draft.draft_id, image, ("plate" if number < 3 else "cup", 1, 1, 9, 9))
    work = await dataset.start(draft_id=draft.draft_id, split_again=True, split_seed=3)
    version = await dataset.version((await dataset.end(work.import_id)).dataset_version_id)
    found = (await dataset.list_images(version.dataset_version_id)).images
    assert {image.split for image in found if image.boxes[0].class_name == "plate"} == {"train", "validation", "test"}


async def test_whole_images_are_labelled_with_a_class(dataset: Client) -> None:
    draft = await dataset.create_draft(
        await unlabelled(dataset), classes=["cup", "plate"], label_kind=dataset_pb2.LABEL_KIND_CLASSES
    )
    images = (await dataset.list_images(draft.draft_id)).images
    for number, image in enumerate(images):
        saved = await dataset.save(draft.draft_id, image, class_name=("cup", "plate")[number % 2])
        assert saved.class_name == ("cup", "plate")[number % 2]
    assert await refused(dataset.save(draft.draft_id, saved, ("cup", 1, 1, 2, 2))) == (
        "INVALID_ARGUMENT",
        "LABEL_KIND_DIFFERS",
    )
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    version = await dataset.version(work.dataset_version_id)
    assert version.label_kind == dataset_pb2.LABEL_KIND_CLASSES
    assert [row.images for row in version.statistics.classes] == [6, 6]
    listed = (await dataset.list_images(work.dataset_version_id)).images
    assert {image.sha256: image.class_name for image in listed} == {
        image.sha256: ("cup", "plate")[number % 2] for number, image in enumerate(images)
    }


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (("fork", 1, 1, 9, 9), "UNKNOWN_CLASS"),
        (("cup", 1, 1, 1, 9), "BOX_NO_AREA"),
        (("cup", 9, 1, 1, 9), "BOX_NO_AREA"),
        (("cup", 70, 1, 90, 9), "BOX_OUTSIDE"),
        (("cup", float("nan"), 1, 90, 9), "BOX_NOT_FINITE"),
        (("cup", 1, 1, float("inf"), 9), "BOX_NOT_FINITE"),
    ],
)
async def test_a_box_that_makes_no_sense_is_refused_and_nothing_is_saved(
    dataset: Client, box: tuple[str, float, float, float, float], reason: str
) -> None:
    draft = await dataset.create_draft(await imported(dataset))
    (image,) = (await dataset.list_images(draft.draft_id, page_size=1)).images
    assert await refused(dataset.save(draft.draft_id, image, ("cup", 2, 2, 5, 5), box)) == ("INVALID_ARGUMENT", reason)
    assert (await dataset.list_images(draft.draft_id, page_size=1)).images[0] == image


async def test_of_two_people_at_one_image_the_second_hears_of_the_first(dataset: Client) -> None:
    draft = await dataset.create_draft(await imported(dataset))
    (image,) = (await dataset.list_images(draft.draft_id, page_size=1)).images
    saved = await dataset.save(draft.draft_id, image, ("cup", 2, 2, 5, 5))
    assert await refused(dataset.save(draft.draft_id, image)) == ("FAILED_PRECONDITION", "IMAGE_CHANGED")
    assert (await dataset.list_images(draft.draft_id, page_size=1)).images[0] == saved
    await dataset.save(draft.draft_id, saved)


async def test_a_save_that_is_repeated_since_its_answer_was_lost_changes_nothing(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup"])
    (image,) = (await dataset.list_images(draft.draft_id, page_size=1)).images
    saved = await dataset.save(draft.draft_id, image, ("cup", 1.00004, 2, 90, 9))
    after = await dataset.get_draft(draft.draft_id)
    assert await dataset.save(draft.draft_id, image, ("cup", 1.00004, 2, 90, 9)) == saved
    assert await dataset.get_draft(draft.draft_id) == after
    again = await dataset.save(draft.draft_id, saved, ("cup", 1.00004, 2, 90, 9))
    assert again.revision == saved.revision + 1
    assert await refused(dataset.save(draft.draft_id, image, ("cup", 1.00004, 2, 90, 9))) == (
        "FAILED_PRECONDITION",
        "IMAGE_CHANGED",
    )


async def test_nothing_on_an_image_that_nobody_has_saved_is_a_save_like_any_other(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup"])
    (image,) = (await dataset.list_images(draft.draft_id, page_size=1)).images
    empty = await dataset.save(draft.draft_id, image)
    assert (empty.labelled, empty.revision) == (True, image.revision + 1)
    assert await dataset.save(draft.draft_id, image) == empty


async def test_classes_are_added_to_a_draft_and_a_draft_is_deleted(dataset: Client) -> None:
    version_id = await imported(dataset)
    request_id = new_id()
    draft = await dataset.create_draft(version_id, request_id=request_id)
    assert await dataset.create_draft(version_id, request_id=request_id) == draft
    add = dataset_pb2.AddDraftClassesRequest(draft_id=draft.draft_id, classes=["fork", "cup", "fork"])
    grown = await dataset.stub.AddDraftClasses(add, metadata=dataset.metadata)
    assert list(grown.classes) == ["cup", "plate", "fork"]
    assert await dataset.stub.AddDraftClasses(add, metadata=dataset.metadata) == grown
    bad = dataset_pb2.AddDraftClassesRequest(draft_id=draft.draft_id, classes=[" fork"])
    assert await refused(dataset.stub.AddDraftClasses(bad, metadata=dataset.metadata)) == (
        "INVALID_ARGUMENT",
        "CLASS_NAME_INVALID",
    )
    listed = await dataset.stub.ListDrafts(dataset_pb2.ListDraftsRequest(), metadata=dataset.metadata)
    assert list(listed.drafts) == [grown]
    delete = dataset_pb2.DeleteDraftRequest(draft_id=draft.draft_id)
    await dataset.stub.DeleteDraft(delete, metadata=dataset.metadata)
    for call in (
        dataset.get_draft(draft.draft_id),
        dataset.list_images(draft.draft_id),
        dataset.start(draft_id=draft.draft_id),
    ):
        assert await refused(call) == ("NOT_FOUND", "DRAFT_NOT_FOUND")


async def test_a_draft_that_is_deleted_again_is_answered_as_the_first_time_and_told_once(
    running: Running, tokens: Tokens, new_account: NewAccount, dataset: Client, jetstream: JetStreamContext
) -> None:
    version_id = await imported(dataset, count=3)
    draft = await dataset.create_draft(version_id)
    delete = dataset_pb2.DeleteDraftRequest(draft_id=draft.draft_id)
    deleted = await dataset.stub.DeleteDraft(delete, metadata=dataset.metadata)
    assert await dataset.stub.DeleteDraft(delete, metadata=dataset.metadata) == deleted
    stranger = client(running.channel, tokens, await new_account(), dataset.store)
    again = stranger.stub.DeleteDraft(delete, metadata=stranger.metadata)
    assert await refused(again) == ("NOT_FOUND", "DRAFT_NOT_FOUND")
    await dataset.create_draft(version_id)
    told = await read_events(jetstream, f"saucer.dataset.v1.*.{dataset.account_id}.>", count=6)
    drafts = [event.type.rpartition(".")[2] for event in told if ".Draft" in event.type]
    assert drafts == ["DraftCreated", "DraftDeleted", "DraftCreated"]


async def test_an_account_has_only_so_many_open_drafts(dataset: Client) -> None:
    version_id = await imported(dataset, count=3)
    for _ in range(MAX_OPEN_DRAFTS):
        await dataset.create_draft(version_id)
    assert await refused(dataset.create_draft(version_id)) == ("RESOURCE_EXHAUSTED", "TOO_MANY_DRAFTS")


async def test_a_draft_is_not_deleted_while_a_version_is_made_of_it(dataset: Client) -> None:
    draft = await dataset.create_draft(await imported(dataset))
    work = await dataset.start(draft_id=draft.draft_id)
    delete = dataset_pb2.DeleteDraftRequest(draft_id=draft.draft_id)
    assert await refused(dataset.stub.DeleteDraft(delete, metadata=dataset.metadata)) == (
        "FAILED_PRECONDITION",
        "DRAFT_IN_USE",
    )
    await dataset.end(work.import_id)
    await dataset.stub.DeleteDraft(delete, metadata=dataset.metadata)


async def test_another_accounts_images_and_drafts_do_not_exist(
    running: Running, tokens: Tokens, new_account: NewAccount, dataset: Client
) -> None:
    version_id = await imported(dataset)
    draft = await dataset.create_draft(version_id)
    stranger = client(running.channel, tokens, await new_account(), dataset.store)
    (image,) = (await dataset.list_images(draft.draft_id, page_size=1)).images
    for call in (
        stranger.list_images(version_id),
        stranger.list_images(draft.draft_id),
        stranger.create_draft(version_id),
        stranger.save(draft.draft_id, image),
        stranger.start(draft_id=draft.draft_id),
        stranger.export(version_id),
    ):
        assert (await refused(call))[0] == "NOT_FOUND"


async def test_an_exported_version_is_coco_and_its_boxes_are_the_manifests(dataset: Client, database_url: str) -> None:
    version = await dataset.version(await imported(dataset))
    document = json.loads(await dataset.export(version.dataset_version_id))
    manifest = dataset.manifest(version)
    assert document["annotations"] == manifest["annotations"]
    assert document["categories"] == manifest["categories"]
    kept = ("id", "width", "height", "split")
    assert [{key: row[key] for key in kept} for row in document["images"]] == [
        {key: row[key] for key in kept} for row in manifest["images"]
    ]
    assert [row["file_name"] for row in document["images"]] == [row["source_name"] for row in manifest["images"]]
    assert await reads(database_url, dataset.account_id) == (0, 0)


async def test_a_set_of_very_many_boxes_is_exported_and_imported_while_others_are_served(
    dataset: Client, database_url: str
) -> None:
    version_id = await imported(dataset, count=30)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        UPDATE listed_image SET areas = '[]', labels = (
            SELECT json_agg(json_build_array(0, box % 100 / 2.0, box / 100 / 2.0, 1, 1, 0))
            FROM generate_series(0, $2 - 1) AS box)
        WHERE set_id = $1
        """,
        version_id,
        MAX_BOXES_PER_IMAGE,
    )
    await connection.close()
    async with longest_turn() as turn:
        exported = await dataset.export(version_id)
        draft = await dataset.create_draft(version_id)
        work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    begun = time.thread_time()
    annotations = json.loads(exported)["annotations"]
    whole_s = time.thread_time() - begun
    assert len(annotations) == 30 * MAX_BOXES_PER_IMAGE
    assert (await dataset.version(work.dataset_version_id)).statistics.boxes == 30 * MAX_BOXES_PER_IMAGE
    assert turn.seconds < whole_s / 5, "it computed with many images' boxes at once"


@dataclass
class Turn:
    seconds: float = 0.0


@asynccontextmanager
async def longest_turn() -> AsyncIterator[Turn]:
    """How long the loop's thread, which runs the service too, computed before others had their turn."""
    longest = Turn()

    async def watch() -> None:
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            longest.seconds = max(longest.seconds, time.thread_time() - begun)

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()


async def test_a_label_keeps_its_area_until_its_box_is_changed_by_hand(dataset: Client) -> None:
    version_id = await imported(dataset)
    before = dataset.manifest(await dataset.version(version_id))
    stated = {label["image_id"] for label in before["annotations"] if label["area"] == 150.5}
    assert len(stated) == 6
    draft = await dataset.create_draft(version_id)
    kept, moved = [image for image in (await dataset.list_images(draft.draft_id)).images if image.image_id in stated][
        :2
    ]
    (own,) = kept.boxes
    await dataset.save(
        draft.draft_id, kept, (own.class_name, own.x1, own.y1, own.x2, own.y2), (own.class_name, 30, 30, 40, 50)
    )
    await dataset.save(draft.draft_id, moved, (moved.boxes[0].class_name, 2, 2, 12, 22))
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    version = await dataset.version(work.dataset_version_id)
    after = dataset.manifest(version)
    assert before["images"] == after["images"]
    areas: dict[int, list[float]] = {}
    for label in after["annotations"]:
        areas.setdefault(label["image_id"], []).append(label["area"])
    assert areas == {
        image["id"]: [150.5, 200]
        if image["id"] == kept.image_id
        else [150.5]
        if image["id"] in stated - {moved.image_id}
        else [200]
        for image in after["images"]
    }
    exported = json.loads(await dataset.export(version.dataset_version_id))
    assert exported["annotations"] == after["annotations"]


async def test_a_draft_without_a_change_is_the_version_that_it_was_made_of(dataset: Client) -> None:
    version_id = await imported(dataset)
    draft = await dataset.create_draft(version_id)
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    assert work.dataset_version_id == version_id


async def test_what_was_exported_with_its_images_is_the_same_version_again(dataset: Client, database_url: str) -> None:
    pictures = [data for name, data in coco_files(6, seed=3).items() if name.endswith(".png")]
    files = {f"{'abcdef'[number]}/{number % 3} ü*.png": data for number, data in enumerate(pictures)}
    plain = await dataset.import_bytes(archive_of(files), source_format=dataset_pb2.SOURCE_FORMAT_IMAGES)
    version_id = plain.dataset_version_id
    draft = await dataset.create_draft(version_id, classes=["cup"])
    (image, empty, *_) = (await dataset.list_images(draft.draft_id)).images
    await dataset.save(draft.draft_id, image, ("cup", 0.125, 1, 30, 40))
    await dataset.save(draft.draft_id, empty)
    made = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    archive = await dataset.export(made.dataset_version_id, include_images=True)
    with zipfile.ZipFile(io.BytesIO(archive)) as unpacked:
        assert unpacked.testzip() is None
        assert len(set(unpacked.namelist())) == 7
    assert (await reads(database_url, dataset.account_id))[0] == 6
    again = await dataset.import_bytes(archive)
    assert again.dataset_version_id == made.dataset_version_id
    assert again.dataset_version_id != version_id


async def test_an_image_that_was_saved_with_nothing_on_it_stays_labelled(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset), classes=["cup"])
    image, empty, *waiting = (await dataset.list_images(draft.draft_id)).images
    await dataset.save(draft.draft_id, image, ("cup", 1, 1, 9, 9))
    await dataset.save(draft.draft_id, empty)
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    version = await dataset.version(work.dataset_version_id)
    assert version.statistics.unlabelled_images == len(waiting)
    next_draft = await dataset.create_draft(version.dataset_version_id)
    assert next_draft.unlabelled_images == len(waiting)
    for image_set_id in (version.dataset_version_id, next_draft.draft_id):
        left = (await dataset.list_images(image_set_id, labelled=False)).images
        assert [one.sha256 for one in left] == [one.sha256 for one in waiting]
    again = await dataset.end((await dataset.start(draft_id=next_draft.draft_id)).import_id)
    assert again.dataset_version_id == version.dataset_version_id


async def test_a_draft_of_whole_images_that_were_all_passed_over_may_go_on_as_one(dataset: Client) -> None:
    classes = dataset_pb2.LABEL_KIND_CLASSES
    draft = await dataset.create_draft(await unlabelled(dataset, 2), classes=["cup"], label_kind=classes)
    for image in (await dataset.list_images(draft.draft_id)).images:
        await dataset.save(draft.draft_id, image)
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    version = await dataset.version(work.dataset_version_id)
    assert (version.label_kind, version.statistics.unlabelled_images) == (classes, 2)
    next_draft = await dataset.create_draft(work.dataset_version_id)
    assert (next_draft.label_kind, next_draft.unlabelled_images) == (classes, 2)


async def test_images_with_nothing_on_them_are_unlabelled_in_a_draft_of_whole_images(dataset: Client) -> None:
    draft = await dataset.create_draft(await unlabelled(dataset, 2), classes=["cup"])
    for image in (await dataset.list_images(draft.draft_id)).images:
        await dataset.save(draft.draft_id, image)
    work = await dataset.end((await dataset.start(draft_id=draft.draft_id)).import_id)
    version_id = work.dataset_version_id
    assert (await dataset.version(version_id)).statistics.unlabelled_images == 0
    of_boxes = await dataset.create_draft(version_id)
    of_classes = await dataset.create_draft(version_id, label_kind=dataset_pb2.LABEL_KIND_CLASSES)
    for other, unlabelled_images in ((of_boxes, 0), (of_classes, 2)):
        assert other.unlabelled_images == unlabelled_images
        assert len((await dataset.list_images(other.draft_id, labelled=False)).images) == unlabelled_images
    image, _ = (await dataset.list_images(of_classes.draft_id)).images
    await dataset.save(of_classes.draft_id, image, class_name="cup")
    assert (await dataset.get_draft(of_classes.draft_id)).unlabelled_images == 1
