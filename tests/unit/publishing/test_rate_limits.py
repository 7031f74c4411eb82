"""What one token may ask for in a second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.errors import ResourceExhaustedError
from saucer.publishing import limits
from saucer.publishing.limits import Limits


def test_a_burst_passes_then_the_rate_and_no_more_each_token_for_itself() -> None:
    made = Limits(requests_per_s=2, bytes_per_s=1000)
    made.take("a", 1, 0.0)
    made.take("a", 1, 0.0)
    with pytest.raises(ResourceExhaustedError) as refusal:
        made.take("a", 1, 0.1)
    assert (refusal.value.reason, refusal.value.metadata["retry_after_s"]) == ("RATE_LIMITED", "0.400")
    made.take("b", 1, 0.1)
    made.take("a", 1, 0.51)


def test_further_requests_in_one_that_has_passed_are_paid_for_before_the_next() -> None:
    made = Limits(requests_per_s=2, bytes_per_s=1000)
    made.take("a", 1, 0.0)
    made.owe("a", 7)
    with pytest.raises(ResourceExhaustedError) as refusal:
        made.take("a", 1, 3.0)
    assert refusal.value.metadata["retry_after_s"] == "0.500"
    made.take("a", 1, 3.5)


def test_bytes_count_and_one_larger_than_a_burst_passes_alone_and_is_paid_for_after() -> None:
    made = Limits(requests_per_s=100, bytes_per_s=1000)
    made.take("a", 3000, 0.0)
    with pytest.raises(ResourceExhaustedError):
        made.take("a", 1, 1.9)
    made.take("a", 1, 2.1)
    made = Limits(requests_per_s=100, bytes_per_s=1000)
    made.take("a", 1000, 0.0)
    with pytest.raises(ResourceExhaustedError):
        made.take("a", 500, 0.4)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOKENS", 3)
    made = Limits(requests_per_s=1, bytes_per_s=1)
    for number in range(100):
        made.take(str(number), 0, 0.0)
    assert len(made._buckets) == 3


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 300)), max_size=60))
def test_whatever_comes_no_more_passes_than_the_rate_and_one_burst(calls: list[tuple[float, int]]) -> None:
    made, now_s, passed, size = Limits(requests_per_s=3, bytes_per_s=400), 0.0, 0, 0
    for gap_s, size_bytes in calls:
        now_s += gap_s
        try:
            made.take("a", size_bytes, now_s)
        except ResourceExhaustedError:
            continue
        passed, size = passed + 1, size + size_bytes
        assert passed <= 3 + 3 * now_s + 1e-6
        assert size <= 400 + 400 * now_s + 1e-3
