"""Images and their labels: listed, drafted, saved, exported.

1. The images of a version are listed from rows that its import left; a draft begins with a copy of them.
2. Saving the labels of one image locks its draft, and needs the image's revision as it was read: of two people at one
   image, the second hears of the first.
3. A version is made of a draft by an import (imports.py) of the draft as it stands when the import begins; the draft
   stays, and labelling can go on.
4. Images are read from the account's store only where a caller asks, and each read is counted.
"""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import asyncpg
import structlog
from google.protobuf.message import Message

from saucer.dataset.coco_export import CocoWriter
from saucer.dataset.domain import DatasetVersion, Import, LabelKind
from saucer.dataset.draft_file import DRAFT_FILE, first_line, image_line
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
from saucer.dataset.service.changes import publish
from saucer.dataset.storage import images_prefix
from saucer.dataset.store import accounts as account_store
from saucer.dataset.store import images as image_store
from saucer.dataset.store import versions as version_store
from saucer.dataset.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from saucer.lib.image_reads import ImageReads, StoredImage
from saucer.lib.objects import Objects
from saucer.lib.postgres import Connection, Database, Transaction

# Of one answer or exported piece, so that it fits what a gRPC client takes by default (4 MiB); an image has at most
# labels.MAX_BOXES_PER_IMAGE.
PAGE_LABELS = 20_000
# Of an exported set, read at a time.
EXPORT_IMAGES = 1_000
EXPORT_PIECE_BYTES = 256 * 1024

Shown = list[tuple[ListedImage, bytes]]

log = structlog.get_logger()


class Labelling:
    """Images of versions and drafts, and their labels."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self.image_reads = ImageReads("dataset", database, objects)

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
            rows = await image_store.list_rows(
                connection,
                set_id,
                labelled=labelled,
                split=split,
                class_index=_class_index(image_set, class_name) if class_name else None,
                after=after,
                limit=limit + 1,
            )
        shown = await asyncio.to_thread(_page, rows[:limit])
        account_id = image_set.account_id
        if include_images:
            data = await self.image_reads.page(account_id, [_stored(account_id, image) for image in shown])
        else:
            data = [b""] * len(shown)
        found = list(zip(shown, data, strict=False))
        return image_set, found, len(found) < len(rows)

    async def _image_set(self, connection: Connection, set_id: str) -> ImageSet:
        version = await version_store.get_version(connection, set_id)
        if version is not None:
            current().own("dataset_version", set_id, version.account_id)
            return set_of(version)
        draft = _open_draft(await image_store.get_draft(connection, set_id), set_id)
        return draft.image_set

    # Export

    async def export_version(self, dataset_version_id: str, *, include_images: bool) -> AsyncIterator[bytes]:
        """A version as a COCO document, or as a zip of annotations.json and the images, in pieces.

        Raises:
            NotFoundError. DataLossError: an image is not what its hash says. UnavailableError.
        """
        async with self._database.reading() as connection:
            version = await version_store.get_version(connection, dataset_version_id)
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
            yield await asyncio.to_thread(writer.images, images)
        yield writer.between()
        async for images in self._pages(version.dataset_version_id):
            yield await asyncio.to_thread(writer.annotations, images)
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
                async with self.image_reads.counted(version.account_id) as read:
                    for image in images:
                        name = export_name(image, name_is_shared=image.source_name in shared)
                        data = await read(_stored(version.account_id, image))
                        await asyncio.to_thread(archive.writestr, f"images/{name}", data)
                        yield sink.take()
            # Writes the list of all files.
            await asyncio.to_thread(archive.close)
        yield sink.take()

    async def _pages(self, set_id: str) -> AsyncIterator[list[ListedImage]]:
        """All images of a version, which does not change."""
        after = 0
        while True:
            async with self._database.reading() as connection:
                rows = await image_store.list_rows(connection, set_id, after=after, limit=EXPORT_IMAGES)
            if not rows:
                return
            while rows:
                images = await asyncio.to_thread(_page, rows)
                yield images
                after, rows = images[-1].place, rows[len(images) :]

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
            await account_store.get_account_store(tx.connection, account_id, lock=True)
            version = await version_store.get_version(tx.connection, dataset_version_id)
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
            if saved == image:
                return draft, image
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
        file = folder / DRAFT_FILE
        await asyncio.to_thread(folder.mkdir)
        # One snapshot to the end of the file: labelling goes on, and no label may name a class that came later.
        async with (
            self._database.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            draft = await image_store.get_draft(connection, work.draft_id)
            assert draft is not None, "imports refer to it"
            await asyncio.to_thread(file.write_text, first_line(draft), encoding="utf-8")
            async for rows in image_store.every_row(connection, work.draft_id):
                await asyncio.to_thread(_append, file, rows, with_split=not work.split_again)


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


def _stored(account_id: str, image: ListedImage) -> StoredImage:
    return StoredImage(f"{images_prefix(account_id)}/{image.sha256}", image.sha256)


def _class_index(image_set: ImageSet, class_name: str) -> int:
    try:
        return image_set.classes.index(class_name)
    except ValueError as error:
        raise InvalidArgumentError("CLASS_UNKNOWN", f"class_name: there is no class '{class_name}'.") from error


async def _publish(tx: Transaction, draft: Draft, message: Message) -> None:
    await publish(tx, message, account_id=draft.account_id, resource_id=draft.draft_id, revision=draft.revision)


def _page(rows: Sequence[asyncpg.Record]) -> list[ListedImage]:
    """The first images that have no more labels than a page may, one at least. Blocks: for a thread."""
    images: list[ListedImage] = []
    labels = 0
    for image in image_store.images_of(rows):
        labels += len(image.labels)
        if images and labels > PAGE_LABELS:
            break
        images.append(image)
    return images


def _append(file: Path, rows: Sequence[asyncpg.Record], *, with_split: bool) -> None:
    """Blocks: for a thread."""
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(image_line(image, with_split=with_split) for image in image_store.images_of(rows))


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
