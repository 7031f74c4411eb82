"""Rows as they are read."""

from typing import Any

import asyncpg

_IDS = frozenset({"account_id", "upload_id", "import_id", "dataset_version_id", "draft_id", "claim_token"})


def with_text_ids(row: asyncpg.Record) -> dict[str, Any]:
    """The same, with ids as text."""
    return {key: str(value) if key in _IDS and value is not None else value for key, value in row.items()}
