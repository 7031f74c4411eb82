"""The SQL of drafts, and of the images of versions and drafts."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import asyncpg

from saucer.dataset.domain import LabelKind
from saucer.dataset.drafts import Draft, ListedImage
from saucer.lib.postgres import Connection

# For the images of a whole set, written in one statement: 250,000 of them take seconds.
SET_TIMEOUT_S = 120.0
# A row of the longest listing, of MAX_BOXES_PER_IMAGE boxes with areas, has less. A longer one is no listing of ours.
MAX_ROW_BYTES = 2 * 1024**2
_ROWS_AT_ONCE = 1_000

_IMAGE = "place, sha256, width, height, split, source_name, labels, areas, labelled, revision"
_COPIED = "set_id, place, sha256, width, height, split, source_name, labels, areas, labelled"
_DRAFT = (
    "draft_id, account_id, dataset_version_id, display_name, label_kind, classes, images, unlabelled_images, state, "
    "created_at, revision"
)

# Images


async def copy_images(connection: Connection, set_id: str, listing: Path) -> None:
    """Inserts the images of a new version, from a file as listing.write_listing() writes it.

    Raises asyncpg.DataError or ValueError if the file is none.
    """
    await connection.copy_to_table(
        "listed_image", source=_rows(set_id, listing), columns=_COPIED.split(", "), format="text", timeout=SET_TIMEOUT_S
    )


async def _rows(set_id: str, listing: Path) -> AsyncIterator[bytes]:
    prefix = f"{set_id}\t".encode()
    with listing.open("rb") as file:

        def read() -> bytes:
            lines = [line for _ in range(_ROWS_AT_ONCE) if (line := file.readline(MAX_ROW_BYTES))]
            if any(not line.endswith(b"\n") for line in lines):
                raise ValueError("The listing has a row that is too long.")
            # The set's id is put before each line here, so that a child process can write to no other set.
            return b"".join(prefix + line for line in lines)

        while rows := await asyncio.to_thread(read):
            yield rows


async def named(connection: Connection, account_id: str, sha256s: Sequence[str]) -> set[str]:
    """Which images any version of the account has."""
    rows = await connection.fetch(
        """
        SELECT sha256 FROM unnest($2::text[]) AS asked (sha256)
        WHERE EXISTS (SELECT FROM listed_image AS l JOIN dataset_version ON dataset_version_id = set_id
                      WHERE l.sha256 = asked.sha256 AND account_id = $1)
        """,
        account_id,
        sha256s,
        timeout=SET_TIMEOUT_S,
    )
    return {str(row["sha256"]) for row in rows}


async def list_rows(
    connection: Connection,
    set_id: str,
    *,
    labelled: bool | None = None,
    split: str | None = None,
    class_index: int | None = None,
    after: int,
    limit: int,
) -> list[asyncpg.Record]:
    """Images in order of their places, for images_of()."""
    wanted: dict[str, object] = {"set_id = {}": set_id, "place > {}": after}
    if labelled is not None:
        wanted["labelled = {}"] = labelled
    if split is not None:
        wanted["split = {}"] = split
    if class_index is not None:
        wanted["set_classes(set_id, classes) @> ARRAY[{}::text]"] = f"{set_id}/{class_index}"
    where = " AND ".join(condition.format(f"${place}") for place, condition in enumerate(wanted, 1))
    async with connection.transaction(readonly=True):
        # A frequent class is found by reading on, a rare one through its index: no plan for any class is both.
        await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        return await connection.fetch(
            f"SELECT {_IMAGE} FROM listed_image WHERE {where} ORDER BY place LIMIT {limit}",  # noqa: S608 - made here
            *wanted.values(),
        )


def images_of(rows: Iterable[asyncpg.Record]) -> Iterator[ListedImage]:
    """Each as it is asked for, in a thread: their labels take milliseconds."""
    return map(_image, rows)


async def get_image(connection: Connection, set_id: str, place: int) -> ListedImage | None:
    """One of a set."""
    row = await connection.fetchrow(
        f"SELECT {_IMAGE} FROM listed_image WHERE set_id = $1 AND place = $2",  # noqa: S608 - column names
        set_id,
        place,
    )
    return _image(row) if row else None


async def save_image(connection: Connection, set_id: str, image: ListedImage) -> None:
    """Its labels; the caller has locked the draft."""
    await connection.execute(
        "UPDATE listed_image SET labels = $3, labelled = $4, revision = $5 WHERE set_id = $1 AND place = $2",
        set_id,
        image.place,
        json.dumps(image.labels),
        image.labelled,
        image.revision,
    )


async def every_row(connection: Connection, set_id: str) -> AsyncIterator[list[asyncpg.Record]]:
    """All images of a set as they stand when it begins, in batches for images_of(); within a transaction."""
    statement = f"SELECT {_IMAGE} FROM listed_image WHERE set_id = $1 ORDER BY place"  # noqa: S608 - column names
    cursor = await connection.cursor(statement, set_id)
    while rows := await cursor.fetch(_ROWS_AT_ONCE):
        yield rows


async def shared_names(connection: Connection, set_id: str) -> set[str]:
    """Source names that several images of a set have, whatever the case of their letters."""
    rows = await connection.fetch(
        """
        SELECT source_name FROM (
            SELECT source_name, count(*) OVER (PARTITION BY lower(source_name)) AS images
            FROM listed_image WHERE set_id = $1) AS named
        WHERE images > 1
        """,
        set_id,
    )
    return {row["source_name"] for row in rows}


def _image(row: asyncpg.Record) -> ListedImage:
    return ListedImage(**{**row, "labels": json.loads(row["labels"]), "areas": json.loads(row["areas"])})


# Drafts


async def insert_draft(connection: Connection, draft: Draft) -> None:
    """A new one, with the images of its version."""
    await connection.execute(
        """
        INSERT INTO draft (draft_id, account_id, dataset_version_id, display_name, label_kind, classes, images,
                           unlabelled_images, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        draft.draft_id,
        draft.account_id,
        draft.dataset_version_id,
        draft.display_name,
        draft.label_kind,
        list(draft.classes),
        draft.images,
        draft.unlabelled_images,
        draft.created_at,
    )
    copied = _COPIED.removeprefix("set_id, ").removesuffix(", labelled")
    await connection.execute(
        f"INSERT INTO listed_image ({_COPIED}) "  # noqa: S608 - column names
        f"SELECT $1, {copied}, labelled AND ($3 OR json_array_length(labels) > 0) "
        "FROM listed_image WHERE set_id = $2",
        draft.draft_id,
        draft.dataset_version_id,
        draft.label_kind is LabelKind.BOXES,
        timeout=SET_TIMEOUT_S,
    )


async def get_draft(connection: Connection, draft_id: str, *, lock: bool = False) -> Draft | None:
    """A draft; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_DRAFT} FROM draft WHERE draft_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        draft_id,
    )
    return _draft(row) if row else None


async def count_open_drafts(connection: Connection, account_id: str) -> int:
    """Of an account."""
    return int(
        await connection.fetchval("SELECT count(*) FROM draft WHERE account_id = $1 AND state = 'OPEN'", account_id)
    )


async def list_drafts(
    connection: Connection, account_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[Draft]:
    """Those that are open, newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_DRAFT} FROM draft
        WHERE account_id = $1 AND state = 'OPEN'
          AND ($2::timestamptz IS NULL OR (created_at, draft_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, draft_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_draft(row) for row in rows]


async def update_draft(connection: Connection, draft: Draft) -> Draft:
    """Its classes, count and state, at the next revision; the caller has locked the row."""
    row = await connection.fetchrow(
        f"""
        UPDATE draft SET classes = $2, unlabelled_images = $3, state = $4, revision = revision + 1
        WHERE draft_id = $1 RETURNING {_DRAFT}
        """,  # noqa: S608 - column names
        draft.draft_id,
        list(draft.classes),
        draft.unlabelled_images,
        draft.state,
    )
    assert row is not None, "the row is locked"
    return _draft(row)


async def has_open_import(connection: Connection, draft_id: str) -> bool:
    """Whether a version is being made of the draft."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM import WHERE draft_id = $1 AND state IN ('QUEUED', 'IMPORTING'))", draft_id
        )
    )


async def delete_images(connection: Connection, set_id: str) -> None:
    """All of a set."""
    await connection.execute("DELETE FROM listed_image WHERE set_id = $1", set_id, timeout=SET_TIMEOUT_S)


_IDS = ("draft_id", "account_id", "dataset_version_id")


def _draft(row: asyncpg.Record) -> Draft:
    ids = {name: str(row[name]) for name in _IDS}
    return Draft(**{**row, **ids, "label_kind": LabelKind(row["label_kind"]), "classes": tuple(row["classes"])})
