"""Keys for np.lexsort, least significant first, of 16 bits each: numpy sorts these by radix, in linear time."""

import numpy as np
from numpy.typing import NDArray

Keys = tuple[NDArray[np.uint16], ...]


def ascending(numbers: NDArray[np.int32]) -> Keys:
    """Numbers [n], none below zero, the smallest first."""
    if numbers.max(initial=0) < 2**16:
        return (numbers.astype(np.uint16),)
    return _halves(numbers.astype(np.uint32))


def falling(scores: NDArray[np.float32]) -> Keys:
    """Finite numbers [n], the greatest first."""
    # Bits of IEEE 754 numbers ascend as the numbers do above zero, and fall below it. To add 0 makes -0 an 0.
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
    return _halves(np.where(bits >> 31, bits, ~(bits | np.uint32(2**31))))


def _halves(numbers: NDArray[np.uint32]) -> Keys:
    return (numbers & np.uint32(0xFFFF)).astype(np.uint16), (numbers >> np.uint32(16)).astype(np.uint16)
