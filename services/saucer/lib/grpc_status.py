"""Errors in wire form: google.rpc.Status (https://google.aip.dev/193), with a reason that programs can read."""

import errno
import socket

import asyncpg
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from saucer.lib import tracing
from saucer.lib.errors import DomainError, UnavailableError
from saucer.lib.ids import new_id

ERROR_DOMAIN = "saucer"
# A server that is lost, that is stopping, or that has no room or connection left; nothing was committed.
_DATABASE_AWAY = (
    ConnectionError,
    # The name of a server whose container or pod is gone.
    socket.gaierror,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
)
# Of transactions that met on the same rows, one was undone.
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

log = structlog.get_logger()


def to_status(method: str, error: Exception) -> status_pb2.Status:
    """Of an error that a method raised; one that is no DomainError is told in general words, and logged."""
    if isinstance(error, DomainError):
        status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
        _add(status, info)
        if error.reason == "FIELD_INVALID":
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=rule)
                for field, rule in error.metadata.items()
            ]
            _add(status, error_details_pb2.BadRequest(field_violations=fields))
        return status
    if isinstance(error, TimeoutError):
        return status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED, message="The call took longer than its deadline.")
    if _is_database_away(error):
        log.warning("database_unavailable", method=method, error=repr(error))
        return to_status(method, UnavailableError("DATABASE_UNAVAILABLE", "The service cannot store now; try again."))
    if isinstance(error, _UNDONE):
        log.warning("call_undone", method=method, error=repr(error))
        return to_status(method, UnavailableError("CONCURRENT_CALL", "Another call changed the same; repeat the call."))
    trace_id = tracing.trace_id() or new_id()
    log.error("call_failed", method=method, trace_id=trace_id, exc_info=error)
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message=f"Something went wrong in Saucer; its log has it under {trace_id}."
    )


def _is_database_away(error: Exception) -> bool:
    if isinstance(error, asyncpg.DataError):
        return False
    unreachable = isinstance(error, OSError) and error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}
    return unreachable or isinstance(error, _DATABASE_AWAY)


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
