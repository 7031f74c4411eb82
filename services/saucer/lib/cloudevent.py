"""CloudEvents 1.0 in NATS binary mode: attributes as `ce-*` headers, the body in protobuf's JSON mapping.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message

from saucer.lib import json_mapping

SPEC_VERSION = "1.0"
CONTENT_TYPE = "application/json"
M = TypeVar("M", bound=Message)
# In a subject's place for the task or deployment of an event that belongs to none.
NO_WORK = "-"


class UnreadableEventError(Exception):
    """The bytes are no event of the type they claim."""


@dataclass(frozen=True)
class CloudEvent:
    """One event as it travels.

    `subject` is the NATS subject and CloudEvents' subject in one: type, account, task or deployment, resource, so that
    one account's or one task's events can be filtered.
    """

    event_id: str
    source: str
    type: str
    subject: str
    account_id: str
    time: datetime
    data: bytes
    # CloudEvents' extension for distributed tracing.
    traceparent: str | None = None

    def headers(self) -> dict[str, str]:
        """The `ce-*` headers, and JetStream's own for deduplication."""
        headers = {
            "ce-specversion": SPEC_VERSION,
            "ce-id": self.event_id,
            "ce-source": self.source,
            "ce-type": self.type,
            "ce-subject": self.subject,
            "ce-time": self.time.isoformat(),
            "ce-accountid": self.account_id,
            "content-type": CONTENT_TYPE,
            "Nats-Msg-Id": self.event_id,
        }
        return headers | ({"ce-traceparent": self.traceparent} if self.traceparent else {})


def subject_of(event_type: str, account_id: str, work_id: str | None, resource_id: str) -> str:
    """`saucer.training.v1.RunEnded.<account>.<task or deployment>.<resource>`."""
    return f"{event_type}.{account_id}.{work_id or NO_WORK}.{resource_id}"


def parse_headers(headers: Mapping[str, str] | None, data: bytes) -> CloudEvent:
    """Raises UnreadableEventError if an attribute that CloudEvents requires is missing or malformed."""
    if headers is None:
        raise UnreadableEventError("The message has no headers.")
    try:
        if headers["ce-specversion"] != SPEC_VERSION:
            raise UnreadableEventError(f"CloudEvents {headers['ce-specversion']} is not {SPEC_VERSION}.")
        return CloudEvent(
            event_id=headers["ce-id"],
            source=headers["ce-source"],
            type=headers["ce-type"],
            subject=headers["ce-subject"],
            account_id=headers["ce-accountid"],
            time=datetime.fromisoformat(headers["ce-time"]),
            data=data,
            traceparent=headers.get("ce-traceparent"),
        )
    except KeyError as error:
        raise UnreadableEventError(f"The header {error.args[0]} is missing.") from error
    except ValueError as error:
        raise UnreadableEventError(f"The header ce-time is no time: {error}") from error


def to_json(message: Message) -> bytes:
    """protobuf's JSON mapping; fields without a value are left out."""
    return json_mapping.to_json(message).encode()


def from_json(data: bytes, message: M) -> M:
    """Fills `message`. Fields of a later version are ignored. Raises UnreadableEventError."""
    try:
        json_mapping.merge_from_json(data, message)
    except ValueError as error:
        raise UnreadableEventError(str(error)) from error
    return message
