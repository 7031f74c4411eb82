"""A traceparent goes on, whether spans are recorded or not."""

import pytest

from saucer.lib import tracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def test_without_a_collector_a_traceparent_that_comes_is_passed_on() -> None:
    with tracing.span("work", parent=PARENT):
        assert tracing.current() == PARENT
        assert tracing.trace_id() == TRACE_ID
        assert tracing.metadata() == (("traceparent", PARENT),)
    assert tracing.current() is None


@pytest.mark.parametrize("parent", [None, "", "nonsense", "00-0-0-0", PARENT.replace("-01", "-zz")])
def test_no_traceparent_and_one_that_cannot_be_read_are_none(parent: str | None) -> None:
    with tracing.span("work", parent=parent):
        assert tracing.current() is None
        assert tracing.metadata() == ()
        assert tracing.trace_id() is None
