"""HTTP to request message and back, by protobuf's JSON mapping (https://protobuf.dev/programming-guides/json/)."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from saucer.gateway.routes import Match
from saucer.lib.errors import InvalidArgumentError

# As google/rpc/code.proto says for each code.
HTTP_STATUS: Mapping[int, int] = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
}
_SINGLE_MESSAGES = {"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"}
_BOOLEANS = {"true": True, "false": False}


def fill(request: Message, match: Match, query: Sequence[tuple[str, str]], body: bytes) -> None:
    """Fills a request from path, query parameters and body.

    A field of the path cannot be changed by the body. Where the rule takes the whole body, there are no parameters.

    Raises:
        InvalidArgumentError: naming the parameter or field that is unknown or cannot be read.
    """
    form: dict[str, Any] = {}
    descriptor = match.route.method.input_type
    if match.route.body == "*":
        if query:
            raise InvalidArgumentError(
                "PARAMETER_UNKNOWN", f"{query[0][0]}: this call takes no query parameters; send it in the body."
            )
        form = _object(body)
    else:
        for name, values in _grouped(query).items():
            _put(form, descriptor, name, values)
        if match.route.body:
            form[match.route.body] = _json(body)
    for name, value in match.values.items():
        _put(form, descriptor, name, [value], replace=True)
    try:
        json_format.ParseDict(form, request)
    except (json_format.ParseError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise InvalidArgumentError("FIELD_UNREADABLE", f"The request cannot be read: {error}") from error


def _grouped(query: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in query:
        grouped.setdefault(name, []).append(value)
    return grouped


def _json(body: bytes) -> object:
    try:
        return json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("BODY_UNREADABLE", f"The body is not JSON: {error}") from error


def _object(body: bytes) -> dict[str, Any]:
    value = _json(body)
    if not isinstance(value, dict):
        raise InvalidArgumentError("BODY_UNREADABLE", "The body is not a JSON object.")
    return value


def _put(form: dict[str, Any], descriptor: Descriptor, path: str, values: list[str], *, replace: bool = False) -> None:
    """Puts a parameter, named by a path with dots, where the JSON mapping expects it."""
    *parents, last = path.split(".")
    for name in parents:
        field = _field(descriptor, name, path)
        if field.message_type is None or field.is_repeated or field.message_type.full_name in _SINGLE_MESSAGES:
            raise InvalidArgumentError("PARAMETER_UNKNOWN", f"{path}: {name} has no fields of its own.", field=path)
        form = form.setdefault(field.json_name, {})
        descriptor = field.message_type
    field = _field(descriptor, last, path)
    if field.message_type is not None and field.message_type.full_name not in _SINGLE_MESSAGES:
        raise InvalidArgumentError("PARAMETER_UNKNOWN", f"{path}: name one of its fields.", field=path)
    read = [_scalar(field, value, path) for value in values]
    if not field.is_repeated and len(read) > 1:
        raise InvalidArgumentError("PARAMETER_REPEATED", f"{path}: given more than once.", field=path)
    if replace:
        # The body may have the field under either of its names.
        form.pop(field.name, None)
    elif field.json_name in form:
        raise InvalidArgumentError("PARAMETER_REPEATED", f"{path}: given under both of its names.", field=path)
    form[field.json_name] = read if field.is_repeated else read[0]


def _field(descriptor: Descriptor, name: str, path: str) -> FieldDescriptor:
    field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
    if field is None:
        raise InvalidArgumentError("PARAMETER_UNKNOWN", f"{path}: there is no such parameter.", field=path)
    return field


def _scalar(field: FieldDescriptor, value: str, path: str) -> object:
    # JSON has its own words for these alone; numbers, enums, times and bytes may be text in protobuf's mapping.
    if field.type != FieldDescriptor.TYPE_BOOL:
        return value
    if value not in _BOOLEANS:
        raise InvalidArgumentError("FIELD_UNREADABLE", f"{path}: true or false, not {value!r}.", field=path)
    return _BOOLEANS[value]


def to_json(message: Message) -> bytes:
    """Every field that has no presence of its own is there, so that a zero is a zero."""
    text = json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, indent=None, ensure_ascii=False
    )
    return text.encode()


def error_json(status: status_pb2.Status) -> dict[str, Any]:
    """The body of an error: `{"error": {"code", "status", "message", "details"}}` (https://google.aip.dev/193)."""
    return {
        "error": {
            "code": HTTP_STATUS[status.code],
            "status": code_pb2.Code.Name(status.code),
            "message": status.message,
            "details": [_detail(detail) for detail in status.details],
        }
    }


def _detail(detail: AnyMessage) -> dict[str, Any]:
    try:
        return json_format.MessageToDict(detail)
    except TypeError:
        # A type that this process does not know.
        return {"@type": detail.type_url, "value": base64.b64encode(detail.value).decode()}
