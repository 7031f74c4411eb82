"""CloudEvents in NATS binary mode: what is sent is what is read."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.cloudevent import CloudEvent, UnreadableEventError, from_json, parse_headers, subject_of, to_json
from saucer.lib.ids import new_id
from saucer.task.v1 import events_pb2, task_pb2

EVENT = CloudEvent(
    event_id=new_id(),
    source="/saucer/task",
    type="saucer.task.v1.TaskQueued",
    subject="saucer.task.v1.TaskQueued.a.t.t",
    account_id="a",
    time=datetime(2026, 11, 24, tzinfo=UTC),
    data=b"{}",
)


@given(st.datetimes(timezones=st.just(UTC)), st.binary())
def test_an_event_is_read_as_it_was_sent(time: datetime, data: bytes) -> None:
    event = CloudEvent(EVENT.event_id, EVENT.source, EVENT.type, EVENT.subject, EVENT.account_id, time, data)
    assert parse_headers(event.headers(), data) == event


def test_the_trace_travels_with_the_event() -> None:
    traced = replace(EVENT, traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert parse_headers(traced.headers(), traced.data) == traced
    assert "ce-traceparent" not in EVENT.headers()


def test_jetstream_deduplicates_by_the_events_id() -> None:
    headers = EVENT.headers()
    assert headers["Nats-Msg-Id"] == headers["ce-id"] == EVENT.event_id
    assert headers["ce-specversion"] == "1.0"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "subject", "accountid", "time"])
def test_a_missing_attribute_is_named(name: str) -> None:
    headers = EVENT.headers()
    del headers[f"ce-{name}"]
    with pytest.raises(UnreadableEventError, match=f"ce-{name}"):
        parse_headers(headers, b"")


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        (None, "no headers"),
        (EVENT.headers() | {"ce-specversion": "2.0"}, "2.0 is not 1.0"),
        (EVENT.headers() | {"ce-time": "noon"}, "ce-time"),
    ],
)
def test_headers_that_are_no_cloudevents_are_unreadable(headers: dict[str, str] | None, sentence: str) -> None:
    with pytest.raises(UnreadableEventError, match=sentence):
        parse_headers(headers, b"")


def test_a_subject_has_a_place_for_the_work_though_there_is_none() -> None:
    assert subject_of("saucer.billing.v1.AccountCreated", "a", None, "a") == "saucer.billing.v1.AccountCreated.a.-.a"


def test_a_body_of_a_later_version_is_read_without_what_is_new() -> None:
    sent = events_pb2.TaskQueued(task=task_pb2.Task(task_id="t", revision=7))
    assert from_json(to_json(sent), events_pb2.TaskQueued()) == sent
    later = to_json(sent).replace(b"{", b'{"aNewField": [1], ', 1)
    assert from_json(later, events_pb2.TaskQueued()) == sent


@pytest.mark.parametrize("body", [b"", b"{", b'{"task": 1}', b"\xff"])
def test_a_body_that_is_not_of_its_type_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableEventError):
        from_json(body, events_pb2.TaskQueued())
