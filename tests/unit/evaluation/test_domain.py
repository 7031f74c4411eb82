"""How the state of an evaluation may move, and what its row keeps."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from saucer.evaluation.domain import (
    MAX_MESSAGE,
    TRANSITIONS,
    AtThreshold,
    ClassFigures,
    CocoNumbers,
    Evaluation,
    EvaluationState,
    Figures,
    ForbiddenMoveError,
    Source,
    StoredFile,
    Summary,
    Sums,
    fail,
    succeed,
)
from saucer.evaluation.metrics import Counts

NOW = datetime(2026, 11, 1, tzinfo=UTC)
FILE = StoredFile("system/a/x", "00")
SUMS = Sums("11", "33", "22")
SUMMARY = Summary(
    Figures(2, 3, 0, 0.5, None, 0.25, None, (ClassFigures("cup", 3, 1.0, 0.5, None, 0.7),)),
    AtThreshold(0.5, Counts(3, 2, 1), (Counts(3, 2, 1),), None, 1),
)
SCORING = Evaluation(
    evaluation_id="e",
    account_id="a",
    task_id="t",
    run_id="r",
    model_id="m",
    dataset_version_id="d",
    source=Source(FILE, FILE, FILE, "system/a/images", ("cup",)),
    state=EvaluationState.SCORING,
    error_message="",
    attempts=1,
    crashes=0,
    summary=None,
    sums=Sums(),
    duration_ms=0,
    created_at=NOW,
    ended_at=None,
    revision=1,
)


def move(source: EvaluationState, target: EvaluationState) -> Evaluation:
    evaluation = replace(SCORING, state=source)
    if target is EvaluationState.SUCCEEDED:
        return succeed(evaluation, SUMMARY, SUMS, 5, NOW)
    return fail(evaluation, "Why.", 5, NOW)


@pytest.mark.parametrize(
    ("source", "target"), list(product(EvaluationState, (EvaluationState.SUCCEEDED, EvaluationState.FAILED)))
)
def test_only_what_the_table_allows_happens(source: EvaluationState, target: EvaluationState) -> None:
    if target in TRANSITIONS[source]:
        moved = move(source, target)
        assert (moved.state, moved.revision, moved.ended_at, moved.duration_ms) == (target, 2, NOW, 5)
    else:
        with pytest.raises(ForbiddenMoveError):
            move(source, target)


def test_nothing_becomes_scoring_again() -> None:
    assert all(EvaluationState.SCORING not in targets for targets in TRANSITIONS.values())


def test_success_has_its_objects_and_failure_its_sentence() -> None:
    succeeded = move(EvaluationState.SCORING, EvaluationState.SUCCEEDED)
    assert succeeded.scored == StoredFile("system/a/evaluations/e/scored.npz", "11")
    assert succeeded.scored_validation == StoredFile("system/a/evaluations/e/validation.npz", "33")
    assert succeeded.truth == StoredFile("system/a/evaluations/e/truth.npz", "22")
    assert (succeeded.summary, succeeded.error_message) == (SUMMARY, "")
    assert fail(SCORING, "x" * 5000, 5, NOW).error_message == "x" * MAX_MESSAGE


def test_a_summary_of_before_coco_was_kept_is_still_read() -> None:
    stored = SUMMARY.as_json()
    del stored["figures"]["coco"]
    assert Summary.from_json(stored) == SUMMARY


def test_a_summary_survives_the_row() -> None:
    whole = replace(SUMMARY, figures=replace(SUMMARY.figures, coco=CocoNumbers(*(number / 10 for number in range(10)))))
    assert Summary.from_json(json.loads(json.dumps(whole.as_json()))) == whole
    assert Summary.from_json(json.loads(json.dumps(SUMMARY.as_json()))) == SUMMARY
