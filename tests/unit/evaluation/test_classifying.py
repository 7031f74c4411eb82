"""Classification (M16): the example of METRICS.md, top-1 and top-5, and every threshold against a plain reference."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation import reading
from saucer.evaluation.bad_cases import FaultKind, bad_cases
from saucer.evaluation.classifying import match_answers, top_accuracies
from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.domain import CannotScoreError
from saucer.evaluation.exporting import ExportFormat, export
from saucer.evaluation.metrics import Counts, ThresholdCurves
from saucer.evaluation.reading import BadCase, CaseFault, CaseFilter, find_bad_cases
from saucer.evaluation.scoring import score
from saucer.evaluation.stored import Loaded, load
from saucer.evaluation.truth import Truth, TruthError, from_coco
from saucer.serving.detections import Detections

CLASSES = ("cup", "plate")
CUP, PLATE = range(2)
Answer = tuple[int, int, float]
"""Image, class, score."""


def document(labels: dict[int, int | None], classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    return {
        "images": [
            {"id": image, "width": 64, "height": 48, "file_name": f"i{image}", "split": "test"} for image in labels
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [
            {"id": image, "image_id": image, "category_id": label}
            for image, label in labels.items()
            if label is not None
        ],
    }


def truth_of(labels: dict[int, int | None], classes: tuple[str, ...] = CLASSES) -> Truth:
    return from_coco(document(labels, classes), classes)


def answers_of(images: list[int], answers: list[Answer]) -> Detections:
    return Detections(
        np.array(images, np.int64),
        np.array([image for image, _, _ in answers], np.int64),
        np.tile(np.array([0, 0, 64, 48], np.float32), (len(answers), 1)),
        np.array([value for _, _, value in answers], np.float32),
        np.array([label for _, label, _ in answers], np.int32),
    )


LABELS: dict[int, int | None] = {1: CUP, 2: PLATE, 3: PLATE, 4: CUP}
BEST = [(1, CUP, 0.9), (2, CUP, 0.8), (3, PLATE, 0.6), (4, PLATE, 0.4)]


def test_the_example_by_hand() -> None:
    truth, answers = truth_of(LABELS), answers_of([1, 2, 3, 4], BEST)
    assert top_accuracies(truth, answers).top_1 == 0.5
    scored = match_answers(truth, answers)
    assert ThresholdCurves(scored).per_class(0.5) == [Counts(2, 1, 1), Counts(2, 1, 0)]
    faults = bad_cases(scored, 0.5)
    assert faults.image_ids().tolist() == [2, 4]
    assert [(fault.kind, fault.label, fault.truth_label) for _, found in faults.by_image() for fault in found] == [
        (FaultKind.CONFUSED, CUP, PLATE),
        (FaultKind.MISS, None, CUP),
    ]
    assert confusion_matrix(scored, 0.5).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_top_five_counts_the_five_best_answers_in_whatever_order_they_are_stored() -> None:
    classes = tuple("abcdefg")
    scores = {0: 0.4, 1: 0.2, 2: 0.15, 3: 0.1, 4: 0.08, 5: 0.07}
    answers = [(image, label, value) for image in (1, 2, 3) for label, value in reversed(scores.items())]
    top = top_accuracies(truth_of({1: 4, 2: 5, 3: 0}, classes), answers_of([1, 2, 3], answers))
    assert (top.top_1, top.top_5) == (1 / 3, 2 / 3)


def test_lower_answers_count_as_nothing_at_any_threshold() -> None:
    images = [1, 2, 3, 4]
    lower = [(image, 1 - label, 1 - value) for image, label, value in BEST if value > 0.5]
    truth = truth_of(LABELS)
    alone = ThresholdCurves(match_answers(truth, answers_of(images, BEST)))
    together = ThresholdCurves(match_answers(truth, answers_of(images, lower + BEST)))
    for threshold in (0.0, 0.3, 0.5, 0.95):
        assert alone.per_class(threshold) == together.per_class(threshold)


def test_an_image_without_label_is_judged_by_nobody_and_one_without_answer_is_unsure() -> None:
    truth = truth_of({1: CUP, 2: None, 3: CUP})
    scored = match_answers(truth, answers_of([1, 2, 3], [(1, CUP, 0.9), (2, PLATE, 0.9)]))
    assert ThresholdCurves(scored).overall(0.5) == Counts(2, 1, 0)
    assert bad_cases(scored, 0.0).image_ids().tolist() == [3]


def test_without_a_label_there_is_no_accuracy() -> None:
    top = top_accuracies(truth_of({1: None}), answers_of([1], [(1, CUP, 0.9)]))
    assert (top.top_1, top.top_5) == (None, None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_threshold_is_what_filtering_first_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    images = list(range(1, int(random.integers(2, 12))))
    classes = tuple("abc")
    labels: dict[int, int | None] = {
        image: int(random.integers(0, 3)) if random.random() < 0.9 else None for image in images
    }
    labels[1] = 0
    answers = [
        (image, label, float(value))
        for image in images
        for label, value in enumerate((random.integers(0, 11, 3) / 10).tolist())
    ]
    random.shuffle(answers)
    scored = match_answers(truth_of(labels, classes), answers_of(images, answers))
    curves = ThresholdCurves(scored)
    for threshold in (0.0, 0.2, 0.5, 0.7, 1.0):
        best = {image: max((row for row in answers if row[0] == image), key=lambda row: row[2]) for image in images}
        sure = {image: row[1] for image, row in best.items() if np.float32(row[2]) >= np.float32(threshold)}
        for label in range(3):
            mine = [image for image in images if labels[image] == label]
            right = sum(sure.get(image) == label for image in mine)
            wrong = sum(said == label for image, said in sure.items() if labels[image] not in {label, None})
            assert curves.of_class(label, threshold) == Counts(len(mine), right, wrong)
        bad = [image for image in images if labels[image] is not None and sure.get(image) != labels[image]]
        assert bad_cases(scored, threshold).image_ids().tolist() == bad


def test_a_scoring_of_whole_images_has_top_accuracies_and_none_of_cocos_numbers() -> None:
    answers = answers_of([1, 2, 3, 4], BEST).to_bytes()
    made = score(json.dumps(document(LABELS)).encode(), answers, Detections.collect([], []).to_bytes(), CLASSES)
    figures, at = made.summary.figures, made.summary.at_default
    assert (figures.classification, figures.top_1, figures.top_5) == (True, 0.5, 0.5)
    assert (figures.map, figures.map_50, figures.coco, at.map_50_above_threshold) == (None, None, None, None)
    assert (at.overall, at.bad_images) == (Counts(4, 2, 1), 2)
    loaded = load(made.truth, answers, made.scored, made.validation)
    assert reading.at_threshold(loaded, 0.5) == at
    cases, total = find_bad_cases(loaded, 0.5, CaseFilter(), offset=0, limit=9)
    assert total == 2
    assert [case.truth[0].corners for case in cases] == [(0, 0, 64, 48)] * 2


def classified(labels: dict[int, int | None], best: list[Answer]) -> Loaded:
    answers = answers_of(list(labels), best).to_bytes()
    made = score(json.dumps(document(labels)).encode(), answers, Detections.collect([], []).to_bytes(), CLASSES)
    return load(made.truth, answers, made.scored, made.validation)


def found(loaded: Loaded, **wanted: Any) -> list[BadCase]:
    return find_bad_cases(loaded, 0.5, CaseFilter(**wanted), offset=0, limit=9)[0]


def test_an_unsure_image_shows_its_answer_alone_and_is_told_by_its_label() -> None:
    loaded = classified(LABELS | {5: CUP}, [*BEST, (4, CUP, 0.3)])
    [wrong, unsure, unanswered] = found(loaded)
    assert [(box.class_name, round(box.score or 0, 3)) for box in unsure.detections] == [("plate", 0.4)]
    assert unsure.faults == (CaseFault(FaultKind.MISS, 0, 0, 1.0, "cup"),)
    assert wrong.faults == (CaseFault(FaultKind.CONFUSED, 0, 0, 1.0, "cup"),)
    assert unanswered.faults == (CaseFault(FaultKind.MISS, None, 0, 0.0, "cup"),)
    assert unanswered.detections == ()


@pytest.mark.parametrize(
    ("wanted", "images"),
    [
        ({"scores": (0.4, 0.5)}, [4]),
        ({"scores": (0.41, 1.0)}, [2]),
        ({"scores": (0.0, 0.39)}, []),
        ({"scores": (0.0, 1.0)}, [2, 4]),
        ({"scores": (0.0, 1.0), "class_name": "plate"}, [2]),
        ({"class_name": "cup"}, [2, 4, 5]),
        ({"kinds": [FaultKind.MISS]}, [4, 5]),
        ({"kinds": [FaultKind.MISS], "scores": (0.0, 1.0)}, [4]),
        ({"kinds": [FaultKind.CONFUSED]}, [2]),
    ],
)
def test_unsure_images_are_filtered_by_the_score_of_their_answer_and_by_their_label(
    wanted: dict[str, Any], images: list[int]
) -> None:
    cases = found(classified(LABELS | {5: CUP}, BEST), **wanted)
    assert [case.image_id for case in cases] == images


def test_an_unsure_answer_is_exported() -> None:
    loaded, wanted = classified(LABELS, BEST), CaseFilter([FaultKind.MISS])
    _, row = csv.reader(io.StringIO("".join(export(loaded, 0.5, wanted, ExportFormat.CSV)), newline=""))
    assert (row[2:4], round(float(row[4]), 3), row[10]) == (["MISS", "plate"], 0.4, "cup")
    coco = json.loads("".join(export(loaded, 0.5, wanted, ExportFormat.COCO)))
    assert [(entry["category_id"], entry["tags"]) for entry in coco["detections"]] == [(2, ["MISS"])]
    assert [(entry["category_id"], entry["tags"]) for entry in coco["annotations"]] == [(1, ["MISS"])]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 1}, "another label already"),
        ({"bbox": [0, 0, 1, 1]}, "no bbox, and others have"),
        ({"image_id": 9}, "no image 9"),
    ],
)
def test_unusable_labels_of_whole_images_are_refused(change: dict[str, Any], said: str) -> None:
    broken = document(LABELS)
    broken["annotations"][1] |= change
    with pytest.raises(TruthError, match=said):
        from_coco(broken, CLASSES)


def test_answers_of_other_images_are_refused_with_a_sentence() -> None:
    empty = Detections.collect([], []).to_bytes()
    with pytest.raises(CannotScoreError, match="not in both"):
        score(json.dumps(document(LABELS)).encode(), empty, empty, CLASSES)
