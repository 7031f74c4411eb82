"""The use cases of images and their labels; beside service.py and roots.py, which open transactions too.

1. The images of a version are listed from rows that its import left; a draft begins with a copy of them.
2. Saving the labels of one image locks its draft, and needs the image's revision as it was read: of two people at one
   image, the second hears of the first.
3. A version is made of a draft by an import (service.py) of the draft as it stands when the import begins; the draft
   stays, and labelling can go on.
4. Images are read from the account's store only where a caller asks, and each read is counted.
"""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.dataset import image_store, store
from saucer.dataset.coco_export import CocoWriter
from saucer.dataset.domain import DatasetVersion, Import, LabelKind
from saucer.dataset.draft_file import DRAFT_FILE, classes_line, image_line
from saucer.dataset.drafts import (
    MAX_OPEN_DRAFTS,
    Draft,
    ImageSet,
    LabelledBox,
    ListedImage,
    begun,
    export_name,
    labelled,
    set_of,
    with_classes,
)
from saucer.dataset.messages import draft_message
from saucer.dataset.storage import images_prefix
from saucer.dataset.v1 import events_pb2
from saucer.lib import image_reads
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from saucer.lib.ids import derived_id
from saucer.lib.objects import Objects
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, Database, Transaction

# Images of one answer, so that it fits what a gRPC client takes by default (4 MiB): the page ends before the image that
# would exceed it, and goes on with its token.
PAGE_IMAGES_BYTES = 3 * 1024**2
# Of one answer, likewise; an image has at most labels.MAX_BOXES_PER_IMAGE.
PAGE_LABELS = 20_000
# A page has one image at least, up to this size: a client that is to see one of over 4 MiB must say so to its channel.
# A larger one comes empty, since no message of ours holds it (lib's MAX_MESSAGE_BYTES).
MAX_IMAGE_BYTES = 16 * 1024**2
# Of an exported set, at a time.
EXPORT_IMAGES = 1_000
EXPORT_PIECE_BYTES = 256 * 1024

Shown = list[tuple[ListedImage, bytes]]

log = structlog.get_logger()
image_reads_total = Counter("saucer_dataset_image_reads_total", "Images read because a caller asked", ["account_id"])
image_bytes_total = Counter("saucer_dataset_image_bytes_total", "Bytes of these images", ["account_id"])


class Labelling:
    """Images of versions and drafts, and their labels."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

    # Images

    async def list_images(
        self,
        set_id: str,
        *,
        labelled: bool | None,
        split: str | None,
        class_name: str | None,
        after: int,
        limit: int,
        include_images: bool,
    ) -> tuple[ImageSet, Shown, bool]:
        """Images of a version or draft by place, with their bytes if asked for, and whether more follow.

        Raises:
            NotFoundError. InvalidArgumentError: CLASS_UNKNOWN. UnavailableError: the store does not answer.
        """
        async with self._database.reading() as connection:
            image_set = await self._image_set(connection, set_id)
            images = await image_store.list_images(
                connection,
                set_id,
                labelled=labelled,
                split=split,
                class_index=_class_index(image_set, class_name) if class_name else None,
                after=after,
                limit=limit + 1,
            )
        shown = _up_to_labels(images[:limit])
        found = await self._with_bytes(image_set.account_id, shown) if include_images else [(i, b"") for i in shown]
        return image_set, found, len(found) < len(images)

    async def _image_set(self, connection: Connection, set_id: str) -> ImageSet:
        version = await store.get_version(connection, set_id)
        if version is not None:
            current().own("dataset_version", set_id, version.account_id)
            return set_of(version)
        draft = _open_draft(await image_store.get_draft(connection, set_id), set_id)
        return draft.image_set

    async def _with_bytes(self, account_id: str, images: Sequence[ListedImage]) -> Shown:
        """The first so many as fit into an answer, one at least."""
        found: Shown = []
        read_bytes = shown_bytes = reads = 0
        try:
            for image in images:
                reads += 1
                data = await self._image(account_id, image)
                read_bytes += len(data)
                if len(data) > MAX_IMAGE_BYTES:
                    log.warning("image_too_large_to_show", image=image.sha256, size_bytes=len(data))
                    data = b""
                shown_bytes += len(data)
                if found and shown_bytes > PAGE_IMAGES_BYTES:
                    break
                found.append((image, data))
        finally:
            # What was read was paid for, also where a later one failed.
            await self._count_reads(account_id, reads, read_bytes)
        return found

    async def _image(self, account_id: str, image: ListedImage) -> bytes:
        try:
            return await self._objects.get(f"{images_prefix(account_id)}/{image.sha256}", sha256=image.sha256)
        except NotFoundError:
            log.warning("image_gone", account_id=account_id, image=image.sha256)
            return b""

    async def list_reads(self, account_id: str, *, before: date | None, limit: int) -> list[tuple[date, int, int]]:
        """Days with the reads and bytes of each, newest first."""
        async with self._database.reading() as connection:
            return await image_reads.list_reads(connection, account_id, before=before, limit=limit)

    async def _count_reads(self, account_id: str, reads: int, size_bytes: int) -> None:
        if not reads:
            return
        image_reads_total.labels(account_id).inc(reads)
        image_bytes_total.labels(account_id).inc(size_bytes)
        async with self._database.transaction() as tx:
            await image_reads.count_reads(tx.connection, account_id, tx.now.date(), reads, size_bytes)

    # Export

    async def export_version(self, dataset_version_id: str, *, include_images: bool) -> AsyncIterator[bytes]:
        """A version as a COCO document, or as a zip of annotations.json and the images, in pieces.

        Raises:
            NotFoundError. DataLossError: an image is not what its hash says. UnavailableError.
        """
        async with self._database.reading() as connection:
            version = await store.get_version(connection, dataset_version_id)
            if version is None:
                raise NotFoundError("dataset_version", dataset_version_id)
            current().own("dataset_version", dataset_version_id, version.account_id)
            shared = await image_store.shared_names(connection, dataset_version_id)
        pieces = self._zip(version, shared) if include_images else self._document(version, shared)
        waiting: list[bytes] = []
        size = 0
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= EXPORT_PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)

    async def _document(self, version: DatasetVersion, shared: set[str]) -> AsyncIterator[bytes]:
        writer = CocoWriter(version, shared)
        yield writer.start()
        async for images in self._pages(version.dataset_version_id):
            yield writer.images(images)
        yield writer.between()
        async for images in self._pages(version.dataset_version_id):
            yield writer.annotations(images)
        yield writer.end()

    async def _zip(self, version: DatasetVersion, shared: set[str]) -> AsyncIterator[bytes]:
        sink = _Sink()
        # Photographs do not shrink.
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("annotations.json", "w", force_zip64=True) as file:
                async for piece in self._document(version, shared):
                    file.write(piece)
                    yield sink.take()
            async for images in self._pages(version.dataset_version_id):
                reads = read_bytes = 0
                try:
                    for image in images:
                        reads += 1
                        data = await self._image(version.account_id, image)
                        read_bytes += len(data)
                        name = export_name(image, name_is_shared=image.source_name in shared)
                        await asyncio.to_thread(archive.writestr, f"images/{name}", data)
                        yield sink.take()
                finally:
                    await self._count_reads(version.account_id, reads, read_bytes)
        yield sink.take()

    async def _pages(self, set_id: str) -> AsyncIterator[list[ListedImage]]:
        """All images of a version, which does not change."""
        after = 0
        while True:
            async with self._database.reading() as connection:
                images = await image_store.list_images(connection, set_id, after=after, limit=EXPORT_IMAGES)
            if not images:
                return
            yield images
            after = images[-1].place

    # Drafts

    async def create_draft(
        self,
        draft_id: str,
        account_id: str,
        dataset_version_id: str,
        display_name: str,
        label_kind: LabelKind | None,
        classes: Sequence[str],
    ) -> Draft:
        """Once for each draft id.

        Raises:
            NotFoundError: the version. InvalidArgumentError: NAME_INVALID, CLASS_NAME_INVALID, LABEL_KIND_DIFFERS.
            ResourceExhaustedError: TOO_MANY_DRAFTS, TOO_MANY_CLASSES. AlreadyExistsError: the id was used for another.
        """
        if not display_name.isprintable():
            raise InvalidArgumentError("NAME_INVALID", "display_name: control characters are not allowed.")
        async with self._database.transaction() as tx:
            # Locked, so that the drafts of an account are counted by one call at a time.
            await store.get_account_store(tx.connection, account_id, lock=True)
            version = await store.get_version(tx.connection, dataset_version_id)
            if version is None or version.account_id != account_id:
                raise NotFoundError("dataset_version", dataset_version_id)
            former = await image_store.get_draft(tx.connection, draft_id)
            if former is not None:
                if (former.dataset_version_id, former.display_name) != (dataset_version_id, display_name):
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another draft.")
                return former
            if await image_store.count_open_drafts(tx.connection, account_id) >= MAX_OPEN_DRAFTS:
                raise ResourceExhaustedError(
                    "TOO_MANY_DRAFTS", f"At most {MAX_OPEN_DRAFTS} drafts may be open; delete one first."
                )
            draft = begun(draft_id, version, display_name, label_kind, classes, tx.now)
            await image_store.insert_draft(tx.connection, draft)
            await _publish(tx, draft, events_pb2.DraftCreated(draft=draft_message(draft)))
        return draft

    async def get_draft(self, draft_id: str) -> Draft:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            return _open_draft(await image_store.get_draft(connection, draft_id), draft_id)

    async def list_drafts(self, account_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[Draft]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await image_store.list_drafts(connection, account_id, after=after, limit=limit)

    async def add_classes(self, draft_id: str, classes: Sequence[str]) -> Draft:
        """Raises NotFoundError, InvalidArgumentError: CLASS_NAME_INVALID, ResourceExhaustedError: TOO_MANY_CLASSES."""
        async with self._database.transaction() as tx:
            draft = await _locked_draft(tx, draft_id)
            changed = with_classes(draft, classes)
            if changed != draft:
                draft = await image_store.update_draft(tx.connection, changed)
                await _publish(tx, draft, events_pb2.DraftChanged(draft=draft_message(draft)))
            return draft

    async def save_labels(
        self, draft_id: str, place: int, revision: int, boxes: Sequence[LabelledBox], class_name: str
    ) -> tuple[Draft, ListedImage]:
        """Replaces the labels of one image; as drafts.labelled() says. Raises NotFoundError besides."""
        async with self._database.transaction() as tx:
            draft = await _locked_draft(tx, draft_id)
            image = await image_store.get_image(tx.connection, draft_id, place)
            if image is None:
                raise NotFoundError("image", str(place))
            saved = labelled(draft, image, boxes, class_name, revision)
            await image_store.save_image(tx.connection, draft_id, saved)
            if not image.labelled:
                draft = replace(draft, unlabelled_images=draft.unlabelled_images - 1)
                draft = await image_store.update_draft(tx.connection, draft)
                await _publish(tx, draft, events_pb2.DraftChanged(draft=draft_message(draft)))
        return draft, saved

    async def delete_draft(self, draft_id: str) -> Draft:
        """Again changes nothing. Raises NotFoundError, FailedPreconditionError: DRAFT_IN_USE."""
        async with self._database.transaction() as tx:
            draft = _owned_draft(await image_store.get_draft(tx.connection, draft_id, lock=True), draft_id)
            if draft.state == "DELETED":
                return draft
            if await image_store.has_open_import(tx.connection, draft_id):
                raise FailedPreconditionError(
                    "DRAFT_IN_USE", "A version is being made of this draft; wait until that import has ended."
                )
            await image_store.delete_images(tx.connection, draft_id)
            deleted = await image_store.update_draft(tx.connection, replace(draft, state="DELETED"))
            await _publish(tx, deleted, events_pb2.DraftDeleted(draft=draft_message(deleted)))
            return deleted

    async def write_draft(self, work: Import, folder: Path) -> None:
        """The draft of an import, as it stands now, into a new folder, for the import's child process."""
        assert work.draft_id is not None
        await asyncio.to_thread(folder.mkdir)
        async with self._database.transaction() as tx:
            draft = await image_store.get_draft(tx.connection, work.draft_id)
            assert draft is not None, "imports refer to it"
            with (folder / DRAFT_FILE).open("w", encoding="utf-8") as file:
                file.write(classes_line(draft.classes))
                async for image in image_store.every_image(tx.connection, work.draft_id):
                    file.write(image_line(image, with_split=not work.split_again))


class _Sink:
    """What a zip file is written to; it cannot go back."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """Nor to give back."""

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _class_index(image_set: ImageSet, class_name: str) -> int:
    try:
        return image_set.classes.index(class_name)
    except ValueError as error:
        raise InvalidArgumentError("CLASS_UNKNOWN", f"class_name: there is no class '{class_name}'.") from error


async def _publish(tx: Transaction, draft: Draft, message: Message) -> None:
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, draft.draft_id, draft.revision),
        message,
        account_id=draft.account_id,
        work_id=None,
        resource_id=draft.draft_id,
    )


def _up_to_labels(images: Sequence[ListedImage]) -> Sequence[ListedImage]:
    """The first images that have no more labels than a page may, one at least."""
    labels = 0
    for number, image in enumerate(images):
        labels += len(image.labels)
        if number and labels > PAGE_LABELS:
            return images[:number]
    return images


def _owned_draft(draft: Draft | None, draft_id: str) -> Draft:
    if draft is None:
        raise NotFoundError("draft", draft_id)
    current().own("draft", draft_id, draft.account_id)
    return draft


def _open_draft(draft: Draft | None, draft_id: str) -> Draft:
    owned = _owned_draft(draft, draft_id)
    if owned.state != "OPEN":
        raise NotFoundError("draft", draft_id)
    return owned


async def _locked_draft(tx: Transaction, draft_id: str) -> Draft:
    return _open_draft(await image_store.get_draft(tx.connection, draft_id, lock=True), draft_id)
