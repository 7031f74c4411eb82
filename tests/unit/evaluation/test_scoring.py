"""The scoring as a whole, on bytes."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saucer.evaluation.domain import CannotScoreError
from saucer.evaluation.manifest import manifest_of
from saucer.evaluation.matching import match
from saucer.evaluation.metrics import ThresholdCurves, coco_metrics
from saucer.evaluation.recommending import Recommender
from saucer.evaluation.scoring import NOTHING_TO_SCORE, score
from saucer.evaluation.stored import load
from saucer.evaluation.truth import from_coco
from saucer.serving.detections import Detections
from tests.unit.evaluation.generated import generate

SEEDS = range(1, 30)


def detections_of(seed: int) -> Detections:
    _, _, columns = generate(seed)
    return Detections(columns.images, columns.image_id, columns.box, columns.score, columns.label)


def split(document: dict[str, Any], name: str) -> dict[str, Any]:
    return document | {"images": [image | {"split": name} for image in document["images"]]}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_recommended_threshold_has_the_best_f1_of_all(seed: int) -> None:
    document, classes, _ = generate(seed)
    truth, detections = from_coco(document, classes), detections_of(seed)
    curves = ThresholdCurves(match(truth, detections))
    for label, chosen in Recommender(curves, len(classes)).best_f1().items():

        def f1(threshold: float, label: int | None = label) -> float:
            counts = curves.overall(threshold) if label is None else curves.of_class(label, threshold)
            return counts.f1 or 0.0

        best = max((f1(threshold) for threshold in detections.score.tolist()), default=0.0)
        has_truth = curves.overall(0).truths if label is None else curves.of_class(label, 0).truths
        if chosen is None:
            assert best == 0.0 or not has_truth
        else:
            assert f1(chosen) == pytest.approx(best)


def test_of_equal_f1_the_highest_threshold_is_recommended() -> None:
    """Of three truths: at 0.9 one of one is right (F1 2/4); at 0.4 two of five (F1 4/8)."""
    corners = [[10 * place, 0, 10 * place + 8, 8] for place in range(6)]
    document = {
        "images": [{"id": 1, "width": 100, "height": 50}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for number, (x1, y1, x2, y2) in enumerate(corners[:3])
        ],
        "categories": [{"id": 0, "name": "cup"}],
    }
    places = [0, 3, 4, 5, 1]
    found = Detections(
        np.array([1], np.int64),
        np.array([1] * 5, np.int64),
        np.array([corners[place] for place in places], np.float32),
        np.array([0.9, 0.4, 0.4, 0.4, 0.4], np.float32),
        np.zeros(5, np.int32),
    )
    truth = from_coco(document, ["cup"])
    assert {ThresholdCurves(match(truth, found)).overall(threshold).f1 for threshold in (0.9, 0.4)} == {0.5}
    assert Recommender(ThresholdCurves(match(truth, found)), 1).best_f1() == {
        None: pytest.approx(0.9),
        0: pytest.approx(0.9),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_scoring_leaves_answers_as_its_summary_says(seed: int) -> None:
    document, classes, _ = generate(seed)
    test, validation = detections_of(seed).to_bytes(), Detections.collect([], []).to_bytes()
    made = score(json.dumps(split(document, "test")).encode(), test, validation, classes)
    loaded = load(made.truth, test, made.scored)
    summary = made.summary
    assert summary.at_default.overall == loaded.curves.overall(0.5)
    assert list(summary.at_default.per_class) == loaded.curves.per_class(0.5)
    assert summary.at_default.bad_images == loaded.bad_images(0.5)
    coco = coco_metrics(from_coco(document, classes), detections_of(seed))
    assert (summary.figures.map, summary.figures.map_50) == (coco.map, coco.map_50)
    assert sum(entry.boxes for entry in summary.figures.classes) == summary.figures.boxes


def test_labels_under_another_name_are_scored_as_the_class_that_they_stand_for() -> None:
    document, classes, _ = generate(10)
    arguments = (detections_of(10).to_bytes(), Detections.collect([], []).to_bytes(), classes)
    plain = score(json.dumps(split(document, "test")).encode(), *arguments)
    document["categories"][0]["name"] = f"my {classes[0]}"
    (other,) = {entry["name"] for entry in document["categories"]} - set(classes)
    names = {other: next(name for name in classes if name not in {entry["name"] for entry in document["categories"]})}
    assert score(json.dumps(split(document, "test")).encode(), *arguments, names) == plain


def test_the_same_input_leaves_the_same_bytes() -> None:
    document, classes, _ = generate(10)
    arguments = (json.dumps(split(document, "test")).encode(), detections_of(10).to_bytes())
    empty = Detections.collect([], []).to_bytes()
    assert score(*arguments, empty, classes) == score(*arguments, empty, classes)


def test_a_split_has_its_own_images_and_labels_alone() -> None:
    document, _, _ = generate(10)
    for place, image in enumerate(document["images"]):
        image["split"] = ("train", "validation", "test")[place % 3]
    parts = [manifest_of(document).split(name) for name in ("train", "validation", "test")]
    for name in ("images", "annotations"):
        assert sum(len(getattr(part, name)) for part in parts) == len(document[name])
    ids = {image.id for image in parts[0].images}
    assert {label.image_id for label in parts[0].annotations} <= ids


def test_a_test_split_without_an_image_is_refused_with_a_sentence() -> None:
    document, classes, _ = generate(10)
    with pytest.raises(CannotScoreError, match=NOTHING_TO_SCORE.split(",", maxsplit=1)[0]):
        score(json.dumps(split(document, "train")).encode(), b"", b"", classes)


@pytest.mark.parametrize("manifest", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"images": {}}', b'{"images": []}'])
def test_a_manifest_that_is_none_is_refused_with_a_sentence(manifest: bytes) -> None:
    with pytest.raises(CannotScoreError, match="manifest"):
        score(manifest, b"", b"", ["cup"])


def test_detections_of_other_images_are_refused_with_a_sentence() -> None:
    document, classes, _ = generate(10)
    nothing = Detections.collect([], [])
    others = replace(nothing, images=np.array([1_000_000], np.int64))
    with pytest.raises(CannotScoreError, match="not in both"):
        score(json.dumps(split(document, "test")).encode(), others.to_bytes(), nothing.to_bytes(), classes)
