"""How much of a log is kept: the bucket, over histories that hypothesis makes up."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from saucer.training.log_limit import BURST, LINES_PER_RUN, LINES_PER_S, LogLimit, admit

QUIET = timedelta(minutes=1)
batches = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 3_000)), max_size=50)


@given(batches)
def test_what_is_kept_stays_below_the_rate_and_every_line_is_kept_or_counted(history: list[tuple[int, int]]) -> None:
    limit, stored, came, told, seconds = LogLimit(), 0, 0, 0, 0.0
    for since_ms, number in history:
        admitted = admit(limit, timedelta(milliseconds=since_ms), number, stored)
        limit = admitted.limit
        stored += admitted.kept + (admitted.told > 0)
        told += admitted.told - (admitted.told > 0)
        came += number
        seconds += since_ms / 1000
        assert stored <= BURST + seconds * LINES_PER_S
        assert stored + told + limit.dropped == came
    assert admit(limit, QUIET, 1, stored).limit.dropped == 0, "in a quiet moment the rest is told"


def test_a_full_log_takes_no_more_and_its_last_line_says_so() -> None:
    last = admit(LogLimit(), QUIET, 5, LINES_PER_RUN - 3)
    assert (last.kept, last.told) == (2, 3)
    after = admit(last.limit, QUIET, 5, LINES_PER_RUN)
    assert (after.kept, after.told) == (0, 0)
