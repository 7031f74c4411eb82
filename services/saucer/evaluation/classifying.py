"""Classification in the terms of detection: an image's best answer is its one detection, its label its one truth (M16).

So everything that answers at a threshold serves both: counts, curves, confusion, bad cases, comparison.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.matching import NEVER, NONE, DetectionColumns, Scored, Verdict, check, places
from saucer.evaluation.sorting import ascending, falling
from saucer.evaluation.truth import Truth

MOST_ANSWERS = 5
"""Of an image that count for top-5."""


@dataclass(frozen=True, slots=True)
class TopAccuracies:
    """Shares of the labelled images; None where there is none."""

    top_1: float | None
    top_5: float | None


def match_answers(truth: Truth, answers: DetectionColumns) -> Scored:
    """Judges each image's best-scored answer, of equal scores the first stored; what else was answered is IGNORED.

    Right: TRUE_POSITIVE. Wrong: CONFUSED with the image's label. An answer to an image without label is IGNORED. The
    label of an image is at its only truth; `answers.label` names classes as truth's do.

    Raises:
        MismatchError: as matching.match does.
    """
    check(truth, answers)
    image, truth_image = places(truth.images, answers.image_id), places(truth.images, truth.image_id)
    truth_of = _truth_of_image(truth, truth_image)
    verdict = np.full(image.size, Verdict.IGNORED, np.uint8)
    named = np.full(image.size, NONE, np.int32)
    best = _ranked(image, answers.score)
    best = best[np.append(True, image[best][1:] != image[best][:-1])[: best.size]]
    best = best[truth_of[image[best]] != NONE]
    asked = truth_of[image[best]]
    right = answers.label[best] == truth.label[asked]
    verdict[best] = np.where(right, Verdict.TRUE_POSITIVE, Verdict.CONFUSED)
    named[best] = asked
    found, confused = np.full((2, truth.label.size), NEVER, np.float32)
    found[asked[right]], confused[asked[~right]] = answers.score[best][right], answers.score[best][~right]
    return Scored(
        images=truth.images,
        class_count=np.array(len(truth.classes), np.int64),
        score=np.asarray(answers.score, np.float32),
        label=np.asarray(answers.label, np.int32),
        image=image,
        verdict=verdict,
        truth=named,
        iou=(named != NONE).astype(np.float32),
        beyond_cap=np.zeros(image.size, np.bool_),
        truth_label=truth.label,
        truth_image=truth_image,
        truth_crowd=truth.crowd,
        found_score=found,
        confused_score=confused,
        poor_score=np.full(truth.label.size, NEVER, np.float32),
    )


def answers_by_truth(scored: Scored) -> NDArray[np.int32]:
    """The row of the answer to each truth's image, sure or not, int32 [t]; NONE: there is none."""
    answers = np.full(scored.truth_label.size, NONE, np.int32)
    judged = np.flatnonzero(scored.truth != NONE)
    answers[scored.truth[judged]] = judged
    return answers


def top_accuracies(truth: Truth, answers: DetectionColumns) -> TopAccuracies:
    """How often the label is the best answer, or among the MOST_ANSWERS best; no threshold moves them."""
    if not truth.label.size:
        return TopAccuracies(None, None)
    image = places(truth.images, answers.image_id)
    truth_of = _truth_of_image(truth, places(truth.images, truth.image_id))
    order = _ranked(image, answers.score)
    place = np.arange(order.size) - np.searchsorted(image[order], image[order], "left")
    asked = truth_of[image[order]]
    right = (asked != NONE) & (answers.label[order] == truth.label[asked])
    labelled = truth.label.size
    return TopAccuracies(
        *(np.unique(image[order][right & (place < most)]).size / labelled for most in (1, MOST_ANSWERS))
    )


def _ranked(image: NDArray[np.int32], score: NDArray[np.float32]) -> NDArray[np.intp]:
    """Rows by image and falling score."""
    order: NDArray[np.intp] = np.lexsort((*falling(score), *ascending(image)))
    return order


def _truth_of_image(truth: Truth, truth_image: NDArray[np.integer]) -> NDArray[np.int32]:
    truth_of = np.full(truth.images.size, NONE, np.int32)
    truth_of[truth_image] = np.arange(truth_image.size)
    return truth_of
