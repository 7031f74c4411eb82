"""Labels that may be wrong, ranked: where a model that is right elsewhere disagrees with them (M15)."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.matching import NEVER, NONE, Scored, Verdict, at_score_precision

MAX_SUSPECTS = 1000
"""The most suspicious are told of; whoever has looked at so many trains again before looking on."""


class SuspectKind(IntEnum):
    MISSING_LABEL = 0
    WRONG_CLASS = 1
    NOTHING_THERE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """Columns of k <= MAX_SUSPECTS rows, most suspicious first, of equal suspicion by kind and then row number.

    `kind` uint8 (SuspectKind); `suspicion` float64 in 0 … 1; `image` int32 indexes Scored.images; `detection` and
    `truth` int64: row numbers, NONE where there is none.
    """

    kind: NDArray[np.uint8]
    suspicion: NDArray[np.float64]
    image: NDArray[np.int32]
    detection: NDArray[np.int64]
    truth: NDArray[np.int64]


def suspects(scored: Scored, threshold: float, kinds: Collection[SuspectKind] = tuple(SuspectKind)) -> Suspects:
    """Of the faults at the threshold (M10). Raises ValueError for a threshold that is not a number."""
    at = at_score_precision(threshold)
    parts = {
        SuspectKind.MISSING_LABEL: _missing_labels,
        SuspectKind.WRONG_CLASS: _wrong_classes,
        SuspectKind.NOTHING_THERE: _nothing_there,
    }
    found = [_best(kind, *parts[kind](scored, at)) for kind in sorted(set(kinds))]
    kind, suspicion, detection, truth = (
        (np.concatenate([part[column] for part in found]) if found else np.empty(0)) for column in range(4)
    )
    rows = np.lexsort((truth, detection, kind, -suspicion))[:MAX_SUSPECTS]
    detection, truth = detection[rows].astype(np.int64), truth[rows].astype(np.int64)
    image = np.empty(rows.size, np.int32)
    image[detection != NONE] = scored.image[detection[detection != NONE]]
    image[detection == NONE] = scored.truth_image[truth[detection == NONE]]
    return Suspects(kind[rows].astype(np.uint8), suspicion[rows].astype(np.float64), image, detection, truth)


_Found = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
"""Suspicion, detection, truth."""


def _missing_labels(scored: Scored, at: np.float32) -> _Found:
    alone = (scored.verdict == Verdict.FALSE_POSITIVE) & (scored.truth == NONE) & (scored.score >= at)
    rows = np.flatnonzero(alone)
    return scored.score[rows].astype(np.float64), rows, np.full(rows.size, NONE, np.int64)


def _wrong_classes(scored: Scored, at: np.float32) -> _Found:
    rows = np.flatnonzero((scored.verdict == Verdict.CONFUSED) & (scored.score >= at))
    truth = scored.truth[rows].astype(np.int64)
    rival = np.maximum(scored.found_score[truth].astype(np.float64), 0.0)
    suspicion = scored.score[rows].astype(np.float64) - rival
    surer = suspicion > 0
    return suspicion[surer], rows[surer], truth[surer]


def _nothing_there(scored: Scored, at: np.float32) -> _Found:
    classes = int(scored.class_count)
    counts = ~scored.truth_crowd
    support = np.bincount(scored.truth_label[counts], minlength=classes)
    ever_found = np.bincount(scored.truth_label[counts & (scored.found_score != NEVER)], minlength=classes)
    named = np.zeros(scored.truth_label.size, np.bool_)
    named[scored.truth[scored.truth != NONE]] = True
    rows = np.flatnonzero(counts & ~named)
    label = scored.truth_label[rows]
    return ever_found[label] / support[label], np.full(rows.size, NONE, np.int64), rows


def _best(
    kind: SuspectKind, suspicion: NDArray[np.float64], detection: NDArray[np.int64], truth: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The MAX_SUSPECTS most suspicious of a kind, without sorting the others."""
    if suspicion.size > MAX_SUSPECTS:
        bound = np.partition(suspicion, -MAX_SUSPECTS)[-MAX_SUSPECTS]
        rows = np.flatnonzero(suspicion >= bound)
        suspicion, detection, truth = suspicion[rows], detection[rows], truth[rows]
    return np.full(suspicion.size, kind, np.uint8), suspicion, detection, truth
