"""CallService: who did what in a service. Every service with a database serves it."""

import json

import asyncpg

from saucer.lib.clock import to_timestamp
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.paging import read_page
from saucer.lib.postgres import Database
from saucer.lib.records import list_calls
from saucer.lib.v1 import calls_pb2, calls_pb2_grpc


def recorded_calls_servicer(database: Database) -> Servicer:
    """The servicer of one service."""
    return Servicer(
        _Calls(database),
        calls_pb2_grpc.add_CallServiceServicer_to_server,
        calls_pb2.DESCRIPTOR.services_by_name["CallService"],
    )


class _Calls(calls_pb2_grpc.CallServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListCalls(self, request: calls_pb2.ListCallsRequest, context: Context) -> calls_pb2.ListCallsResponse:
        page = read_page(request)
        async with self._database.reading() as connection:
            rows = await list_calls(
                connection,
                account_id=request.account_id or None,
                author=request.author or None,
                resource_id=request.resource_id or None,
                after_call_id=page.after_id,
                limit=page.limit,
            )
        shown, following = page.cut(rows, lambda row: (str(row["call_id"]),))
        return calls_pb2.ListCallsResponse(calls=[_to_message(row) for row in shown], next_page_token=following)


def _to_message(row: asyncpg.Record) -> calls_pb2.Call:
    return calls_pb2.Call(
        call_id=str(row["call_id"]),
        method=row["method"],
        author=row["author"],
        role=row["role"],
        token_id=row["token_id"],
        account_id=row["account_id"] or "",
        request_id=row["request_id"] or "",
        ids=json.loads(row["ids"]),
        outcome=row["outcome"] or "",
        create_time=to_timestamp(row["asked_at"]),
    )
