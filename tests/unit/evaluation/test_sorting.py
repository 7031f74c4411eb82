"""Keys of 16 bits sort as the numbers themselves do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from saucer.evaluation.sorting import ascending, falling

SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, st.integers(0, 30), elements=SCORES | st.sampled_from([-0.0, 0.0, 0.5])))
def test_scores_fall_and_equal_ones_stay_in_their_order(scores: NDArray[np.float32]) -> None:
    assert np.lexsort(falling(scores)).tolist() == np.argsort(-scores, kind="stable").tolist()


@given(arrays.arrays(np.int32, st.integers(0, 30), elements=st.integers(0, 2**31 - 1) | st.integers(0, 3)))
def test_numbers_ascend_and_equal_ones_stay_in_their_order(numbers: NDArray[np.int32]) -> None:
    assert np.lexsort(ascending(numbers)).tolist() == np.argsort(numbers, kind="stable").tolist()
