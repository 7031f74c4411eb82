"""Labels that may be wrong (M15): by hand, and what the ranking keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation import suspecting
from saucer.evaluation.matching import NONE, match
from saucer.evaluation.suspecting import SuspectKind, suspects
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.generated import Row, TruthRow, columns, generate, truth_of

CUP, PLATE = 0, 1
A, B, C, D = ((20.0 * place, 0.0, 20.0 * place + 10.0, 10.0) for place in range(4))
FAR = (80.0, 80.0, 90.0, 90.0)

Told = tuple[SuspectKind, float, int, int]


def told(truths: list[TruthRow], rows: list[Row], threshold: float = 0.5) -> list[Told]:
    """Kind, suspicion, detection and truth, as ranked."""
    found = suspects(match(truth_of([1], ["cup", "plate"], truths), columns([1], rows)), threshold)
    columns_ = (found.kind, found.suspicion, found.detection, found.truth)
    return [
        (SuspectKind(kind), round(suspicion, 6), detection, truth)
        for kind, suspicion, detection, truth in zip(*(column.tolist() for column in columns_), strict=True)
    ]


def test_a_sure_box_where_no_label_is_points_at_a_missing_one() -> None:
    truths: list[TruthRow] = [(1, CUP, A, False)]
    assert told(truths, [(1, CUP, A, 0.95), (1, CUP, FAR, 0.9)]) == [(SuspectKind.MISSING_LABEL, 0.9, 1, NONE)]
    assert told(truths, [(1, CUP, A, 0.95), (1, CUP, A, 0.9)]) == [], "a duplicate has its label"
    assert told(truths, [(1, CUP, A, 0.95), (1, CUP, FAR, 0.4)]) == [], "below the threshold it is no fault"


def test_a_surer_box_of_another_class_points_at_a_wrong_one() -> None:
    truths: list[TruthRow] = [(1, CUP, A, False)]
    assert told(truths, [(1, CUP, A, 0.3), (1, PLATE, A, 0.8)]) == [(SuspectKind.WRONG_CLASS, 0.5, 1, 0)]
    assert told(truths, [(1, PLATE, A, 0.8)]) == [(SuspectKind.WRONG_CLASS, 0.8, 0, 0)]
    assert told(truths, [(1, CUP, A, 0.9), (1, PLATE, A, 0.8)]) == [], "the label's own class is surer"


def test_a_label_that_nothing_touches_points_at_nothing_there_the_more_the_others_are_found() -> None:
    cups: list[TruthRow] = [(1, CUP, box, False) for box in (A, B, C, D)]
    rows: list[Row] = [(1, CUP, box, 0.1) for box in (A, B, C)]
    assert told(cups, rows) == [(SuspectKind.NOTHING_THERE, 0.75, NONE, 3)]
    assert told(cups, [*rows, (1, CUP, (60.0, 0.0, 70.0, 3.0), 0.05)]) == [], "boxed poorly, but not unseen"
    assert told([(1, CUP, A, True)], []) == [], "a crowd is no label of one thing"


def test_the_most_suspicious_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [(1, CUP, FAR, 0.5 + number / 100) for number in range(30)]
    monkeypatch.setattr(suspecting, "MAX_SUSPECTS", 4)
    assert [detection for _, _, detection, _ in told([], rows)] == [29, 28, 27, 26]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.integers(0, 20))
def test_suspicion_ranks_and_lies_between_zero_and_one(seed: int, level: int) -> None:
    labels, classes, detections = generate(seed)
    scored = match(from_coco(labels, classes), detections)
    found = suspects(scored, level / 20)
    assert (np.diff(found.suspicion) <= 0).all()
    assert ((found.suspicion >= 0) & (found.suspicion <= 1)).all()
    assert ((found.detection != NONE) | (found.truth != NONE)).all()
    apart = [suspects(scored, level / 20, [kind]).kind.size for kind in SuspectKind]
    assert found.kind.size == min(sum(apart), suspecting.MAX_SUSPECTS)
    assert suspects(scored, level / 20, []).kind.size == 0
