"""Scores are float32 wherever they are stored or sent, so what is compared with them has to be.

For where there is no numpy; evaluation/matching.py has the same rule for arrays of scores.
"""

import struct
from decimal import Decimal

# So many tell any two apart.
FLOAT32_DIGITS = 9


def at_score_precision(threshold: float) -> float:
    """A threshold as a score would be stored, so that 0.7 takes in a score of 0.7."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", threshold))
    return float(rounded)


def threshold_text(value: float) -> str:
    """In as few digits as tell it from other scores: rounded up it would no longer take in the score that it is of."""
    shortest = next(
        text
        for text in (f"{value:.{digits}g}" for digits in range(1, FLOAT32_DIGITS + 1))
        if at_score_precision(float(text)) == at_score_precision(value)
    )
    return f"{Decimal(shortest):f}"
