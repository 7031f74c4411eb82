"""Scores are float32 wherever they are stored or sent, so what is compared with them has to be.

For where there is no numpy; evaluation/matching.py has the same rule for arrays of scores.
"""

import struct


def at_score_precision(threshold: float) -> float:
    """A threshold as a score would be stored, so that 0.7 takes in a score of 0.7."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", threshold))
    return float(rounded)
