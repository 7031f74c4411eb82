"""What is read from a finished evaluation, compared with the arithmetic that it is made of."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from google.protobuf.message import Message

from saucer.evaluation import messages, reading
from saucer.evaluation.bad_cases import FaultKind, bad_cases
from saucer.evaluation.matching import StoredFormError, Verdict, match
from saucer.evaluation.messages import bad_case_message
from saucer.evaluation.reading import (
    CaseFilter,
    at_threshold,
    find_bad_cases,
    find_labelled_images,
    score_histogram,
    score_histograms,
)
from saucer.evaluation.stored import LabelledSet, Loaded, load
from saucer.evaluation.truth import Truth, from_coco
from saucer.lib.image_reads import PAGE_IMAGES_BYTES
from saucer.serving.detections import Detections
from tests.unit.evaluation.generated import columns, generate, truth_of

SEEDS = range(40)
THRESHOLDS = (0.0, 0.05, 0.3, 0.5, 0.75, 1.0)


def stored(seed: int) -> tuple[bytes, bytes, bytes]:
    """Truth, detections and what matches them, as they lie in the store."""
    document, classes, columns = generate(seed)
    truth = from_coco(document, classes)
    detections = Detections(columns.images, columns.image_id, columns.box, columns.score, columns.label)
    names = tuple(f"i{image_id}" for image_id in truth.images.tolist())
    test_set = LabelledSet(truth, names, tuple(f"Foto ü {name}" for name in names))
    return test_set.to_bytes(), detections.to_bytes(), match(truth, detections).to_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_number_of_bad_images_is_that_of_the_listed_ones(seed: int) -> None:
    loaded = load(*stored(seed))
    scores = loaded.scored.score.tolist()[:20]
    for threshold in (*THRESHOLDS, *scores, *(np.nextafter(np.float32(score), np.float32(2)) for score in scores)):
        assert loaded.bad_images(float(threshold)) == bad_cases(loaded.scored, float(threshold)).image_ids().size
        assert at_threshold(loaded, float(threshold)).bad_images == loaded.bad_images(float(threshold))


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_of_bad_cases_join_to_the_whole_list_worst_first(seed: int) -> None:
    loaded = load(*stored(seed))

    def page(offset: int, limit: int) -> list[tuple[int, int]]:
        cases, total = find_bad_cases(loaded, 0.3, CaseFilter(), offset=offset, limit=limit)
        assert total == len(expected)
        return [(-len(case.faults), case.image_id) for case in cases]

    expected = sorted((-len(faults), image_id) for image_id, faults in bad_cases(loaded.scored, 0.3).by_image())
    assert page(0, 1000) == expected
    assert [case for offset in range(0, len(expected), 2) for case in page(offset, 2)] == expected
    assert page(len(expected), 2) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_that_would_grow_too_large_end_before_and_join_to_the_whole_list(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(*stored(seed))
    whole = (
        [bad_case_message(case, b"") for case in find_bad_cases(loaded, 0.0, CaseFilter(), offset=0, limit=200)[0]],
        [messages.test_image_message(image, b"") for image in find_labelled_images(loaded, "", offset=0, limit=200)[0]],
    )
    monkeypatch.setattr(reading, "PAGE_BYTES", 1500)

    def cases(offset: int) -> list[Message]:
        found, total = find_bad_cases(loaded, 0.0, CaseFilter(), offset=offset, limit=200)
        assert total == len(whole[0])
        return [bad_case_message(case, b"") for case in found]

    def images(offset: int) -> list[Message]:
        found, total = find_labelled_images(loaded, "", offset=offset, limit=200)
        assert total == len(whole[1])
        return [messages.test_image_message(image, b"") for image in found]

    for page, expected in zip((cases, images), whole, strict=True):
        joined: list[Message] = []
        while found := page(len(joined)):
            assert len(found) == 1 or sum(message.ByteSize() for message in found) <= reading.PAGE_BYTES
            joined += found
        assert joined == expected


def test_a_page_of_images_full_of_boxes_fits_what_a_client_takes() -> None:
    images = list(range(200))
    rows = [(image, 0, (0.0, 0.0, 8.0, 8.0), number / 300) for image in images for number in range(300)]
    found, truth = columns(images, rows), truth_of(images, ["ü" * 100], [])
    detections = Detections(found.images, found.image_id, found.box, found.score, found.label)
    names = tuple(map(str, images))
    test_set = LabelledSet(truth, names, names).to_bytes()
    loaded = load(test_set, detections.to_bytes(), match(truth, detections).to_bytes())
    cases, total = find_bad_cases(loaded, 0.0, CaseFilter(), offset=0, limit=200)
    assert total == 200
    size_bytes = sum(bad_case_message(case, b"").ByteSize() for case in cases)
    assert reading.PAGE_BYTES / 2 < size_bytes < reading.PAGE_BYTES
    assert reading.PAGE_BYTES + PAGE_IMAGES_BYTES < 4 * 1024**2


def test_a_case_shows_every_truth_and_the_detections_above_the_threshold() -> None:
    loaded = load(*stored(10))
    cases, _ = find_bad_cases(loaded, 0.3, CaseFilter([FaultKind.MISS]), offset=0, limit=10)
    for case in cases:
        assert len(case.truth) == (loaded.truth.image_id == case.image_id).sum()
        above = (loaded.detections.image_id == case.image_id) & (loaded.detections.score >= np.float32(0.3))
        assert len(case.detections) == above.sum()
        assert (case.object_name, case.file_name) == (f"i{case.image_id}", f"Foto ü i{case.image_id}")
        assert {fault.kind for fault in case.faults} == {FaultKind.MISS}
        assert all(fault.detection is None for fault in case.faults)


def test_the_message_of_a_case_tells_labels_of_crowds_from_others() -> None:
    loaded = load(*stored(7))
    cases, _ = find_bad_cases(loaded, 0.3, CaseFilter(), offset=0, limit=100)
    told = [[box.crowd for box in bad_case_message(case, b"").truth] for case in cases]
    assert told == [loaded.truth.crowd[loaded.truth.image_id == case.image_id].tolist() for case in cases]
    assert any(map(any, told))


@pytest.mark.parametrize("seed", [3, 10])
def test_a_histogram_holds_every_detection_that_counts_once(seed: int) -> None:
    loaded = load(*stored(seed))
    whole, *classes = score_histograms(loaded, 20)
    assert whole.edges[0] == 0
    assert whole.edges[-1] == 1
    everything = loaded.curves.overall(0.0)
    assert sum(whole.true_positives) == everything.true_positives
    assert sum(whole.false_positives) == everything.false_positives
    above = loaded.curves.overall(0.5)
    assert sum(whole.false_positives[10:]) == above.false_positives
    assert [histogram.class_name for histogram in classes] == list(loaded.truth.classes)
    assert sum(sum(histogram.true_positives) for histogram in classes) == everything.true_positives


@pytest.mark.parametrize("seed", [3, 10])
def test_a_bin_has_the_detections_from_its_lower_edge_to_the_next_one(seed: int) -> None:
    loaded = load(*stored(seed))
    scored = loaded.scored
    for number, name in enumerate(("", *loaded.truth.classes), -1):
        found = score_histogram(loaded, name, 7)
        mine = (scored.label == number) if name else np.ones(scored.label.size, np.bool_)
        for verdicts, counts in (
            ({Verdict.TRUE_POSITIVE}, found.true_positives),
            (set(Verdict) - {Verdict.TRUE_POSITIVE, Verdict.IGNORED}, found.false_positives),
        ):
            scores = scored.score[mine & np.isin(scored.verdict, list(verdicts))]
            edges = np.append(np.array(found.edges[:-1], np.float32), np.float32(np.inf))
            assert counts == tuple(np.histogram(scores, edges)[0].tolist())


def test_labelled_images_are_browsed_one_by_one_or_by_class() -> None:
    loaded = load(*stored(10))
    every, total = find_labelled_images(loaded, "", offset=0, limit=1000)
    assert [image.image_id for image in every] == loaded.truth.images.tolist()
    assert total == len(every)
    assert [find_labelled_images(loaded, "", offset=place, limit=1)[0] for place in range(3)] == [
        [image] for image in every[:3]
    ]
    for name in loaded.truth.classes:
        mine, count = find_labelled_images(loaded, name, offset=0, limit=1000)
        assert mine == [image for image in every if any(box.class_name == name for box in image.truth)]
        assert count == len(mine)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stored_test_set_is_read_as_it_was(seed: int) -> None:
    data = stored(seed)[0]
    document, classes, _ = generate(seed)
    read, truth = LabelledSet.from_bytes(data).truth, from_coco(document, classes)
    for field in fields(Truth):
        if field.name != "classes":
            assert np.array_equal(getattr(read, field.name), getattr(truth, field.name))
            assert getattr(read, field.name).dtype == getattr(truth, field.name).dtype
    assert read.classes == truth.classes


@pytest.mark.parametrize("spoil", [lambda data: data[:-40], lambda _: b"", lambda _: b"{}"])
@pytest.mark.parametrize("which", range(3))
def test_other_bytes_are_refused(which: int, spoil: Callable[[bytes], bytes]) -> None:
    files = list(stored(3))
    files[which] = spoil(files[which])
    with pytest.raises(StoredFormError):
        load(*files)


def test_the_memory_that_it_takes_is_not_underestimated() -> None:
    loaded = load(*stored(37))
    columns = sum(getattr(loaded.scored, field.name).nbytes for field in fields(loaded.scored))
    assert loaded.size_bytes > columns
    assert isinstance(loaded, Loaded)
