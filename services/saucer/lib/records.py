"""Who did what: each call of a person's or an administrator's that changes something, recorded before it is done.

1. A row says who asks for what, with which token. *If it cannot be written, nothing is done.*
2. The call is done; then the row says how it ended, and what it made. *A process that is killed in between leaves a row
   without an outcome, never a change without a row.*
3. A log line, `call_made`, says the same of those that succeeded. What moves money is besides in billing's own records,
   with its reason.
"""

import json
from collections.abc import Mapping

import asyncpg
import structlog
from google.api import annotations_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from saucer.lib.auth import Principal
from saucer.lib.postgres import Connection, Database
from saucer.lib.v1 import access_pb2

_ABOVE_EDITORS = frozenset({access_pb2.ACCESS_OWNER, access_pb2.ACCESS_PAYMENT, access_pb2.ACCESS_ADMINISTRATOR})

log = structlog.get_logger()


def is_recorded(method: MethodDescriptor, access: int) -> bool:
    """Whether a method changes what somebody may later ask about.

    Not so an editor's call that is not made once (it has no request_id) and deletes nothing: a chunk of an upload, the
    labels of an image.
    """
    verb = method.GetOptions().Extensions[annotations_pb2.http].WhichOneof("pattern")
    if verb == "get" or access not in _ABOVE_EDITORS | {access_pb2.ACCESS_EDITOR}:
        return False
    return access in _ABOVE_EDITORS or verb == "delete" or "request_id" in method.input_type.fields_by_name


class Recorder:
    """Keeps the calls of one service in its database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def asked(self, call_id: str, principal: Principal, method: str, request: Message) -> None:
        """Before the call is done. Raises what PostgreSQL raises."""
        ids = _ids(request)
        request_id = ids.pop("request_id", None)
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                """
                INSERT INTO recorded_call
                    (call_id, method, author, role, token_id, account_id, request_id, ids, asked_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                """,
                call_id,
                method,
                principal.subject,
                principal.role,
                principal.token_id,
                ids.pop("account_id", None) or principal.account_id,
                request_id,
                json.dumps(ids),
                tx.now,
            )

    async def answered(self, call_id: str, outcome: str, response: Message | None = None) -> None:
        """Once it is done. What was done stays done if this cannot be written."""
        made = _made(response) if response is not None else {}
        try:
            async with self._database.reading() as connection:
                row = await connection.fetchrow(
                    """
                    UPDATE recorded_call SET outcome = $2, ids = $3::jsonb || ids, account_id = coalesce(account_id, $4)
                    WHERE call_id = $1 RETURNING method, author, role, token_id, account_id, request_id, ids
                    """,
                    call_id,
                    outcome,
                    json.dumps(made),
                    getattr(response, "account_id", None) or None,
                )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("outcome_not_recorded", call_id=call_id, outcome=outcome, error=repr(error))
            return
        if row is not None and response is not None:
            log.info("call_made", **{**row, "ids": json.loads(row["ids"])})


async def list_calls(
    connection: Connection,
    *,
    account_id: str | None,
    author: str | None,
    resource_id: str | None,
    after_call_id: str | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Newest first."""
    return await connection.fetch(
        """
        SELECT call_id, method, author, role, token_id, account_id, request_id, ids, outcome, asked_at
        FROM recorded_call
        WHERE ($1::text IS NULL OR account_id = $1) AND ($2::text IS NULL OR author = $2)
          AND ($3::text IS NULL OR EXISTS (SELECT FROM jsonb_each_text(ids) AS id WHERE id.value = $3))
          AND ($4::uuid IS NULL OR call_id < $4)
        ORDER BY call_id DESC LIMIT $5
        """,
        account_id,
        author,
        resource_id,
        after_call_id,
        limit,
    )


def _ids(message: Message) -> dict[str, str]:
    """Of fields named …_id that are set."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name.endswith("_id") and getattr(message, field.name)
    }


def _made(resource: Message) -> Mapping[str, str]:
    """A resource's own id, which is its first field."""
    own = [field.name for field in resource.DESCRIPTOR.fields[:1] if field.name not in {"account_id", "request_id"}]
    return {name: value for name, value in _ids(resource).items() if name in own}
