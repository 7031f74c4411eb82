"""COCO's numbers on generated sets: crowds, ties, area edges, empty classes and images, over 100 detections."""

import numpy as np
import pytest

from saucer.evaluation.matching import Verdict, match
from saucer.evaluation.metrics import ThresholdCurves, coco_arrays, coco_metrics
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.generated import columns, document, generate, pycocotools_of

TWELVE = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
SEEDS = range(60)
# Each time 60 of them, and 500 in all in `make soak`.
EVERY_SEED = [*SEEDS, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(60, 500))]


def coco_number(value: float | None) -> float:
    return -1.0 if value is None else value


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_arrays_and_the_twelve_numbers_equal_pycocotools(seed: int) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    theirs = pycocotools_of(labels, detections)

    arrays = coco_arrays(truth, detections)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(getattr(arrays, name), theirs.eval[name], rtol=0, atol=1e-12)
    ours = coco_metrics(truth, detections)
    assert [coco_number(getattr(ours, name)) for name in TWELVE] == pytest.approx(theirs.stats.tolist(), abs=1e-12)

    all_sizes = theirs.eval["precision"][:, :, :, 0, 2]
    ap = [coco_number(value) for value in ours.ap]
    ap_50 = [coco_number(value) for value in ours.ap_50]
    assert ap == pytest.approx(all_sizes.mean(axis=(0, 1)).tolist(), abs=1e-12)
    assert ap_50 == pytest.approx(all_sizes[0].mean(axis=0).tolist(), abs=1e-12)


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_the_one_pass_gives_cocos_ap_50_of_the_detections_above_any_threshold(seed: int) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    curves = ThresholdCurves(match(truth, detections))
    for threshold in (0.0, 0.35, 2 / 3):
        theirs = pycocotools_of(labels, detections.above(threshold)).eval["precision"][0, :, :, 0, 2]
        ours = [coco_number(value) for value in curves.ap_50_above_threshold(threshold)]
        assert ours == pytest.approx(theirs.mean(axis=0).tolist(), abs=1e-12)
        by_coco = coco_metrics(truth, detections.above(threshold))
        assert curves.map_50_above_threshold(threshold) == pytest.approx(by_coco.map_50, abs=1e-12)


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_the_one_pass_matches_as_pycocotools_does_at_iou_half(seed: int) -> None:
    labels, classes, detections = generate(seed)
    scored = match(from_coco(labels, classes), detections)
    evaluation = pycocotools_of(labels, detections)
    evaluation.params.maxDets = [10_000]
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    matched: dict[int, int] = {}
    ignored: set[int] = set()
    for image in filter(None, evaluation.evalImgs):
        for detection, found, left_out in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
            if left_out:
                ignored.add(detection - 1)
            elif found:
                matched[detection - 1] = int(found) - 1
    hits = np.flatnonzero(scored.verdict == Verdict.TRUE_POSITIVE)
    assert dict(zip(hits.tolist(), scored.truth[hits].tolist(), strict=True)) == matched
    assert set(np.flatnonzero(scored.verdict == Verdict.IGNORED).tolist()) == ignored


@pytest.mark.parametrize(("label", "found"), [([2.02, 0, 30, 11], (3, 0, 18, 11)), ([0, 2.02, 11, 30], (0, 3, 11, 18))])
def test_half_of_a_label_overlaps_it_by_half_though_its_corners_are_rounded(
    label: list[float], found: tuple[float, float, float, float]
) -> None:
    """15 of 30 pixels by 11; in float64 2.02 + 30 - 2.02 is more than 30, and half of that would be missed."""
    labels = document([1], ["cup"], [(1, 0, (0, 0, 1, 1), False)])
    labels["annotations"][0] |= {"bbox": label, "area": 330}
    truth, detections = from_coco(labels, ["cup"]), columns([1], [(1, 0, found, 0.9)])
    assert pycocotools_of(labels, detections).stats[1] == pytest.approx(1, abs=1e-12)
    assert coco_metrics(truth, detections).map_50 == pytest.approx(1, abs=1e-12)
    assert match(truth, detections).verdict.tolist() == [Verdict.TRUE_POSITIVE]


def test_the_generated_sets_hold_what_they_are_for() -> None:
    crowds = tied = many = no_detections = unlabelled_classes = images_without_truth = rounded = 0
    for seed in SEEDS:
        labels, classes, detections = generate(seed)
        truth = from_coco(labels, classes)
        crowds += bool(truth.crowd.any())
        tied += np.unique(detections.score).size < detections.score.size
        many += bool((np.unique(detections.image_id, return_counts=True)[1] > 100).any())
        no_detections += detections.score.size == 0
        unlabelled_classes += np.unique(truth.label).size < len(classes)
        images_without_truth += np.unique(truth.image_id).size < truth.images.size
        rounded += not np.array_equal(truth.box[:, 2:] - truth.box[:, :2], truth.box_size)
    assert min(crowds, tied, unlabelled_classes, images_without_truth, rounded) >= 20
    assert many >= 5
    assert no_detections >= 2


def test_without_a_detection_every_figure_with_truth_is_zero() -> None:
    labels, classes, _ = generate(1)
    truth = from_coco(labels, classes)
    ours = coco_metrics(truth, columns(truth.images.tolist(), []))
    assert (ours.map, ours.map_50, ours.ar_100, ours.map_weighted, ours.map_50_weighted) == (0, 0, 0, 0, 0)
    assert [value for value, count in zip(ours.ap, ours.support, strict=True) if count] == [0.0] * np.count_nonzero(
        ours.support
    )


@pytest.mark.parametrize("images", [[], [4, 9]])
def test_without_truth_there_is_nothing_to_measure(images: list[int]) -> None:
    labels = {
        "images": [{"id": image, "width": 9, "height": 9} for image in images],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [],
    }
    detections = columns(images, [(4, 0, (0, 0, 5, 5), 0.9)] if images else [])
    ours = coco_metrics(from_coco(labels, ["cup"]), detections)
    assert (ours.map, ours.map_50, ours.map_weighted, ours.ap, ours.support) == (None, None, None, (None,), (0,))
