"""Limits on which services must agree, though none imports another."""

from saucer.billing import metering
from saucer.task import quoting
from saucer.training import charging


def test_finishing_is_counted_held_for_and_quoted_up_to_the_same_time() -> None:
    assert charging.FINISH_RESERVE_MS == metering.FINISH_RESERVE_MS == quoting.FINISH_RESERVE_MS
