"""Who did what: one log line, `call_made`, for each call of a person's or an administrator's that changed something.

Its fields are always these: method, author (the token's subject), role, token_id, account_id, request_id, and the ids
that the call named or made. What moves money is besides in billing's own records, with its reason.
"""

from collections.abc import Mapping

import structlog
from google.api import annotations_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from saucer.lib.auth import Principal
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


def record(principal: Principal, method: str, request: Message, response: Message) -> None:
    """Tells of a call that was answered."""
    ids = {**_ids(response, own_only=True), **_ids(request, own_only=False)}
    log.info(
        "call_made",
        method=method,
        author=principal.subject,
        role=principal.role,
        token_id=principal.token_id,
        account_id=ids.pop("account_id", None) or principal.account_id or getattr(response, "account_id", None),
        request_id=ids.pop("request_id", None),
        ids=ids,
    )


def _ids(message: Message, *, own_only: bool) -> Mapping[str, str]:
    """Of fields named …_id that are set; a resource's own id is its first field."""
    fields = message.DESCRIPTOR.fields[:1] if own_only else message.DESCRIPTOR.fields
    return {
        field.name: getattr(message, field.name)
        for field in fields
        if field.name.endswith("_id") and getattr(message, field.name)
    }
