"""Room for requests: of each caller half of what the others leave."""

from contextlib import ExitStack

import pytest

from saucer.lib.byte_budget import ByteBudget
from saucer.lib.errors import ResourceExhaustedError

TOTAL = 64


def most(budget: ByteBudget, holder: str, stack: ExitStack) -> int:
    """Takes bytes for a caller, one by one, until there are no more for it."""
    taken = 0
    while True:
        try:
            stack.enter_context(budget.hold(holder, 1))
        except ResourceExhaustedError:
            return taken
        taken += 1


def test_however_many_take_all_that_they_can_get_some_is_left_for_one_more() -> None:
    budget = ByteBudget(TOTAL)
    with ExitStack() as stack:
        assert [most(budget, holder, stack) for holder in "abcdef"] == [32, 16, 8, 4, 2, 1]
        assert most(budget, "a", stack) == 0, "its share has not grown"


def test_what_is_given_back_is_there_for_others_again() -> None:
    budget = ByteBudget(TOTAL)
    with ExitStack() as others:
        with budget.hold("a", 32) as held:
            assert most(budget, "b", others) == 16
            held.shrink(2)
            assert most(budget, "b", others) == 15
        assert most(budget, "b", others) == 1
    assert not budget.held_bytes


def test_one_that_is_larger_than_a_share_never_fits() -> None:
    with pytest.raises(ResourceExhaustedError) as refused:
        ByteBudget(TOTAL).hold("a", TOTAL // 2 + 1)
    assert refused.value.reason == "NO_ROOM_FOR_REQUEST"
