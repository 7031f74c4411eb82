"""Recommended thresholds (M12) and their uncertainty (M13): by hand, and against trying every score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.matching import match
from saucer.evaluation.metrics import Counts, ThresholdCurves
from saucer.evaluation.recommending import Choices, Goal, Recommender, wilson
from saucer.evaluation.thinning import PrPoints
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.generated import generate

# Four truths; by falling score right, wrong, right, right, wrong.
POINTS = PrPoints(
    threshold=np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32),
    recall=np.array([1, 1, 2, 3, 3]) / 4,
    precision=np.array([1 / 1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]),
)
NOTHING = PrPoints(np.empty(0, np.float32), np.empty(0), np.empty(0))


@pytest.mark.parametrize(
    ("goal", "wanted", "threshold"),
    [
        (Goal.BEST_F1, None, 0.6),
        # Reached at 0.9 and again at 0.6, which finds more.
        (Goal.PRECISION, 0.75, 0.6),
        (Goal.PRECISION, 0.8, 0.9),
        (Goal.PRECISION, 0.5, 0.5),
        # Reached at 0.6 and 0.5; the higher has fewer false ones.
        (Goal.RECALL, 0.75, 0.6),
        (Goal.RECALL, 0.2, 0.9),
        (Goal.RECALL, 0.76, None),
    ],
)
def test_thresholds_by_hand(goal: Goal, wanted: float | None, threshold: float | None) -> None:
    chosen = Choices(POINTS).of(goal, wanted)
    assert chosen == (None if threshold is None else pytest.approx(threshold))
    assert Choices(NOTHING).of(goal, wanted) is None


def test_intervals_by_hand() -> None:
    """Wilson's own form: the shares p with |x/n - p| <= z sqrt(p (1 - p) / n), whose bounds meet it exactly."""
    for part, whole in ((9, 10), (1, 3), (50, 100), (0, 8), (8, 8)):
        interval = wilson(part, whole)
        assert interval is not None
        for bound in (interval.low, interval.high):
            if bound not in (0.0, 1.0):
                assert abs(part / whole - bound) == pytest.approx(
                    1.959963984540054 * (bound * (1 - bound) / whole) ** 0.5
                )
    nine = wilson(9, 10)
    assert nine is not None
    assert [nine.low, nine.high] == pytest.approx([0.5958, 0.9821], abs=5e-5)
    assert wilson(0, 0) is None


@given(whole=st.integers(1, 10**6), data=st.data())
def test_an_interval_holds_the_share_and_stays_a_share(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    interval = wilson(part, whole)
    assert interval is not None
    assert 0 <= interval.low <= part / whole <= interval.high <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), wanted=st.integers(1, 20).map(lambda level: level / 20))
def test_chosen_on_one_split_it_is_the_first_or_last_score_that_serves_and_told_of_the_other(
    seed: int, wanted: float
) -> None:
    labels, classes, detections = generate(seed)
    validation = ThresholdCurves(match(from_coco(labels, classes), detections))
    # The same labels with other detections stand for the test split.
    test = ThresholdCurves(match(from_coco(labels, classes), detections.above(0.4)))
    goals = {Goal.BEST_F1: None, Goal.PRECISION: wanted, Goal.RECALL: wanted}
    scores = sorted(set(detections.score.tolist()))
    for found in Recommender(validation, len(classes)).recommend(test, goals):

        def at(threshold: float, label: int | None = found.label) -> Counts:
            return validation.at(label, threshold)

        mine = [score for score in scores if at(0.0).truths]
        if found.goal is Goal.PRECISION:
            serving = [score for score in mine if (at(score).precision or 0.0) >= wanted][:1]
        elif found.goal is Goal.RECALL:
            serving = [score for score in mine if (at(score).recall or 0.0) >= wanted][-1:]
        else:
            best = max((at(score).f1 or 0.0 for score in mine), default=0.0)
            serving = [score for score in mine if best and at(score).f1 == best][-1:]
        if not serving:
            assert (found.threshold, found.validation, found.test) == (None, None, None)
            continue
        assert found.threshold is not None
        assert found.validation == at(serving[0]) == at(found.threshold)
        assert found.test == test.at(found.label, found.threshold)
