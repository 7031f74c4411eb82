"""DeadEventService: what a service could not consume, shown and retried. Every consuming service serves it."""

import asyncpg

from saucer.lib.clock import to_timestamp
from saucer.lib.cloudevent import UnreadableEventError
from saucer.lib.consumer import Consumer, list_dead, retry_dead
from saucer.lib.errors import DomainError, FailedPreconditionError
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.paging import read_page
from saucer.lib.postgres import Database
from saucer.lib.v1 import dead_events_pb2, dead_events_pb2_grpc


def dead_events_servicer(database: Database, consumer: Consumer) -> Servicer:
    """The servicer of one service."""
    return Servicer(
        _DeadEvents(database, consumer),
        dead_events_pb2_grpc.add_DeadEventServiceServicer_to_server,
        dead_events_pb2.DESCRIPTOR.services_by_name["DeadEventService"],
    )


class _DeadEvents(dead_events_pb2_grpc.DeadEventServiceServicer):
    def __init__(self, database: Database, consumer: Consumer) -> None:
        self._database = database
        self._consumer = consumer

    async def ListDeadEvents(
        self, request: dead_events_pb2.ListDeadEventsRequest, context: Context
    ) -> dead_events_pb2.ListDeadEventsResponse:
        page = read_page(request)
        async with self._database.reading() as connection:
            rows = await list_dead(connection, after_event_id=page.after_id, limit=page.limit)
        shown, following = page.cut(rows, lambda row: (str(row["event_id"]),))
        return dead_events_pb2.ListDeadEventsResponse(
            dead_events=[_to_message(row) for row in shown], next_page_token=following
        )

    async def RetryDeadEvent(
        self, request: dead_events_pb2.RetryDeadEventRequest, context: Context
    ) -> dead_events_pb2.DeadEvent:
        try:
            row = await retry_dead(self._database, self._consumer, request.event_id)
        except DomainError as error:
            if error.code == "NOT_FOUND" and error.reason == "DEAD_EVENT_NOT_FOUND":
                raise
            raise FailedPreconditionError("STILL_REFUSED", f"It was refused again: {error.message}") from error
        except UnreadableEventError as error:
            raise FailedPreconditionError("STILL_REFUSED", f"It cannot be read: {error}") from error
        return _to_message(row)


def _to_message(row: asyncpg.Record) -> dead_events_pb2.DeadEvent:
    return dead_events_pb2.DeadEvent(
        event_id=str(row["event_id"]),
        consumer=row["consumer"],
        type=row["type"],
        subject=row["subject"],
        error=row["error"],
        attempts=row["attempts"],
        dead_time=to_timestamp(row["dead_at"]),
        body=row["body"],
    )
