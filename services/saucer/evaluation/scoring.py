"""Scores stored detections: pure work on bytes, done in a process of its own (scoring_child.py)."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from saucer.evaluation import reading
from saucer.evaluation.classifying import match_answers, top_accuracies
from saucer.evaluation.domain import DEFAULT_THRESHOLD, CannotScoreError, ClassFigures, CocoNumbers, Figures, Summary
from saucer.evaluation.manifest import Manifest, ManifestError, read_manifest
from saucer.evaluation.matching import MismatchError, match
from saucer.evaluation.metrics import ThresholdCurves, coco_metrics
from saucer.evaluation.recommending import Recommender
from saucer.evaluation.stored import Judged, LabelledSet
from saucer.evaluation.truth import Truth, TruthError, from_coco, statistics
from saucer.serving.detections import Detections
from saucer.serving.errors import DetectionsError

NOTHING_TO_SCORE = "The test split has no image, so there is nothing to evaluate on; the model itself is usable."


@dataclass(frozen=True)
class Scoring:
    """What it leaves: the row's summary, a matching.Scored of the test and the validation split, a LabelledSet."""

    summary: Summary
    scored: bytes
    validation: bytes
    truth: bytes


def score(
    manifest: bytes,
    test: bytes,
    validation: bytes,
    classes: Sequence[str],
    label_names: Mapping[str, str] = MappingProxyType({}),
) -> Scoring:
    """Figures on the test split; `label_names` as Source has them.

    Thresholds are chosen on the validation split, and absent where that is empty.

    Raises:
        CannotScoreError: a file is unreadable, labels and detections do not belong together, or there is no test image.
    """
    with _refusing("The manifest cannot be read"):
        document = read_manifest(manifest).renamed(label_names)
    with _refusing("The test split cannot be scored"):
        test_set = _test_set(document, classes)
        if test_set.truth.images.size == 0:
            raise CannotScoreError(NOTHING_TO_SCORE)
        detections = Detections.from_bytes(test)
    judge, figures = (match_answers, _classified) if document.labels_whole_images else (match, _detected)
    # The library that computes COCO's numbers lets Python go on meanwhile.
    with ThreadPoolExecutor(1) as beside:
        fixed = beside.submit(figures, test_set.truth, detections)
        with _refusing("The test split cannot be scored"):
            scored = judge(test_set.truth, detections)
        with _refusing("No threshold can be chosen on the validation split"):
            labels = from_coco(document.split("validation"), classes)
            validated = judge(labels, Detections.from_bytes(validation))
        chosen = Recommender(ThresholdCurves(validated), len(classes)).best_f1()
        at_default = reading.at_threshold(Judged(test_set, scored), DEFAULT_THRESHOLD)
        stored = scored.to_bytes(), validated.to_bytes(), test_set.to_bytes()
    return Scoring(Summary(_with_thresholds(fixed.result(), chosen), at_default), *stored)


@contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    try:
        yield
    except (ManifestError, TruthError, MismatchError, DetectionsError) as error:
        raise CannotScoreError(f"{sentence}: {error}.") from error


def _test_set(manifest: Manifest, classes: Sequence[str]) -> LabelledSet:
    labels = manifest.split("test")
    truth = from_coco(labels, classes)
    images = sorted(labels.images, key=lambda image: image.id)
    return LabelledSet(
        truth,
        tuple(image.file_name for image in images),
        tuple(image.source_name or image.file_name for image in images),
        manifest.labels_whole_images,
    )


def _detected(truth: Truth, detections: Detections) -> Figures:
    coco = coco_metrics(truth, detections)
    counted = _counted(truth)
    return replace(
        counted,
        map=coco.map,
        map_50=coco.map_50,
        map_50_weighted=coco.map_50_weighted,
        classes=tuple(
            replace(entry, ap=coco.ap[label], ap_50=coco.ap_50[label]) for label, entry in enumerate(counted.classes)
        ),
        coco=CocoNumbers(**{field.name: getattr(coco, field.name) for field in fields(CocoNumbers)}),
    )


def _classified(truth: Truth, answers: Detections) -> Figures:
    top = top_accuracies(truth, answers)
    return replace(_counted(truth), classification=True, top_1=top.top_1, top_5=top.top_5)


def _counted(truth: Truth) -> Figures:
    """What the labels alone say."""
    counts = statistics(truth)
    return Figures(
        images=counts.images,
        boxes=counts.boxes,
        unlabelled_images=counts.images_without_boxes,
        map=None,
        map_50=None,
        map_50_weighted=None,
        recommended_threshold=None,
        classes=tuple(ClassFigures(entry.name, entry.boxes, entry.share, None, None, None) for entry in counts.classes),
    )


def _with_thresholds(figures: Figures, chosen: Mapping[int | None, float | None]) -> Figures:
    classes = (replace(entry, recommended_threshold=chosen[label]) for label, entry in enumerate(figures.classes))
    return replace(figures, recommended_threshold=chosen[None], classes=tuple(classes))
