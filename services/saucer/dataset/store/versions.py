"""The SQL of versions."""

import json
from datetime import datetime

import asyncpg

from saucer.dataset.domain import (
    DatasetVersion,
    LabelKind,
)
from saucer.dataset.store.rows import with_text_ids
from saucer.lib.postgres import Connection

_VERSION = (
    "dataset_version_id, account_id, display_name, content_hash, manifest_key, manifest_sha256, image_prefix, "
    "label_kind, classes, statistics, created_at, revision"
)


async def insert_version(connection: Connection, version: DatasetVersion) -> bool:
    """False if the account has a version of the same content."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO dataset_version (dataset_version_id, account_id, display_name, content_hash, manifest_key,
                                         manifest_sha256, image_prefix, label_kind, classes, statistics, created_at,
                                         revision)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            ON CONFLICT (account_id, content_hash) DO NOTHING RETURNING true
            """,
            version.dataset_version_id,
            version.account_id,
            version.display_name,
            version.content_hash,
            version.manifest_key,
            version.manifest_sha256,
            version.image_prefix,
            version.label_kind,
            list(version.classes),
            json.dumps(version.statistics),
            version.created_at,
            version.revision,
        )
    )


async def version_of_content(connection: Connection, account_id: str, content_hash: str) -> DatasetVersion | None:
    """The account's version of this content."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM dataset_version WHERE account_id = $1 AND content_hash = $2",  # noqa: S608 - column names
        account_id,
        content_hash,
    )
    return _version(row) if row else None


async def unlisted_versions(connection: Connection, *, limit: int) -> list[DatasetVersion]:
    """Of which no image is listed: they were imported before there were rows of images."""
    rows = await connection.fetch(
        f"""
        SELECT {_VERSION} FROM dataset_version v
        WHERE NOT EXISTS (SELECT FROM listed_image WHERE set_id = v.dataset_version_id) LIMIT $1
        """,  # noqa: S608 - column names
        limit,
    )
    return [_version(row) for row in rows]


async def get_version(connection: Connection, dataset_version_id: str) -> DatasetVersion | None:
    """By id."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM dataset_version WHERE dataset_version_id = $1",  # noqa: S608 - column names
        dataset_version_id,
    )
    return _version(row) if row else None


async def list_versions(
    connection: Connection, account_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[DatasetVersion]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_VERSION} FROM dataset_version
        WHERE account_id = $1
          AND ($2::timestamptz IS NULL OR (created_at, dataset_version_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, dataset_version_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_version(row) for row in rows]


def _version(row: asyncpg.Record) -> DatasetVersion:
    plain = with_text_ids(row)
    return DatasetVersion(
        **plain
        | {
            "label_kind": LabelKind(row["label_kind"]),
            "classes": tuple(row["classes"]),
            "statistics": json.loads(row["statistics"]),
        }
    )
