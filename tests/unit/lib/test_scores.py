"""Thresholds as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.scores import at_score_precision, threshold_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (0.87365, "0.87365"), (0.7, "0.7"), (0.0, "0"), (1.0, "1"), (0.1 + 0.2, "0.3"), (2e-5, "0.00002")],
)
def test_a_threshold_is_written_in_the_digits_that_it_has(value: float, text: str) -> None:
    assert threshold_text(value) == threshold_text(at_score_precision(value)) == text


@given(score=st.floats(0, 1, width=32))
def test_a_threshold_that_was_a_score_takes_that_score_in_when_it_is_typed_as_it_was_shown(score: float) -> None:
    shown = float(threshold_text(score))
    assert at_score_precision(shown) == score
