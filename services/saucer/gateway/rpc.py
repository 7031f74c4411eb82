"""Messages to reading the stream and back; nothing else."""

from collections.abc import AsyncIterator

from nats.js import JetStreamContext

from saucer.gateway.events import EventReader, subject
from saucer.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from saucer.lib.auth import current
from saucer.lib.grpc_server import Context, Servicer


def servicer(jetstream: JetStreamContext) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _EventRpc(jetstream),
        gateway_pb2_grpc.add_EventServiceServicer_to_server,
        gateway_pb2.DESCRIPTOR.services_by_name["EventService"],
    )


class _EventRpc(gateway_pb2_grpc.EventServiceServicer):
    def __init__(self, jetstream: JetStreamContext) -> None:
        self._jetstream = jetstream

    async def StreamEvents(
        self, request: gateway_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.CloudEvent]:
        principal = current()
        named = bool(request.account_id) or principal.account_id is not None
        account_id = principal.account(request.account_id) if named else None
        filter_subject = subject(account_id, request.work_id or None)
        reader = EventReader(self._jetstream, filter_subject, request.after_sequence, request.until_now)
        async for message in reader.read():
            yield message
