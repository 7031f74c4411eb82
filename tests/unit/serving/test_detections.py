"""The stored form of detections."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.serving import detections as module
from saucer.serving.detections import Detections
from saucer.serving.detector import ImageDetections
from saucer.serving.errors import DetectionsError

COLUMNS = ("images", "image_id", "box", "score", "label")


def sample(**changes: Any) -> Detections:
    columns: dict[str, Any] = {
        "images": np.array([4, 9, 2], np.int64),
        "image_id": np.array([4, 4, 2], np.int64),
        "box": np.array([[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 3, 8]], np.float32),
        "score": np.array([0.9, 0.2, 0.5], np.float32),
        "label": np.array([0, 1, 1], np.int32),
    }
    return Detections(**{**columns, **changes})


def columns(stored: Detections) -> list[tuple[str, list[Any]]]:
    return [(str(getattr(stored, name).dtype), getattr(stored, name).tolist()) for name in COLUMNS]


def test_what_is_stored_is_loaded() -> None:
    assert columns(Detections.from_bytes(sample().to_bytes())) == columns(sample())


@given(st.dictionaries(st.integers(1, 2**62), st.integers(0, 4), max_size=8))
def test_images_are_kept_with_and_without_detections(found: dict[int, int]) -> None:
    rng = np.random.default_rng(1)
    parts = [
        ImageDetections(
            boxes=np.sort(rng.uniform(0, 9, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32),
            scores=rng.random(n, np.float32),
            labels=np.arange(n, dtype=np.int32),
            width=9,
            height=9,
        )
        for n in found.values()
    ]
    loaded = Detections.from_bytes(Detections.collect(list(found), parts).to_bytes())
    assert loaded.images.tolist() == list(found)
    assert loaded.image_id.tolist() == [image for image, n in found.items() for _ in range(n)]
    assert loaded.box.shape == (sum(found.values()), 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": np.array([4, 4, 2], np.int64)}, "named twice"),
        ({"image_id": np.array([4, 4, 77], np.int64)}, "not predicted"),
        ({"image_id": np.array([4, 4], np.int64)}, "differ in length"),
        ({"score": np.array([0.9, 0.2, 1.5], np.float32)}, "score"),
        ({"score": np.array([0.9, 0.2, np.nan], np.float32)}, "score"),
        ({"score": np.array([0.9, 0.2, 0.5], np.float64)}, "float64"),
        ({"label": np.array([0, 1, -1], np.int32)}, "negative"),
        ({"box": np.array([[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 1, 8]], np.float32)}, "inside out"),
        ({"box": np.full((3, 4), np.inf, np.float32)}, "not finite"),
        ({"box": np.zeros((3, 5), np.float32)}, "box is float32"),
        ({"label": np.array(["a", "b", "c"], object)}, "object"),
    ],
)
def test_columns_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DetectionsError, match=reason):
        sample(**changes)


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def stored_columns() -> dict[str, Any]:
    return {"format": np.int64(1), **{name: getattr(sample(), name) for name in COLUMNS}}


def test_another_format_is_refused() -> None:
    with pytest.raises(DetectionsError, match="format 2"):
        Detections.from_bytes(archive(**{**stored_columns(), "format": np.int64(2)}))


def test_missing_and_unknown_columns_are_refused() -> None:
    fields = stored_columns()
    with pytest.raises(DetectionsError, match="not the columns"):
        Detections.from_bytes(archive(**fields, more=np.zeros(3)))
    del fields["label"]
    with pytest.raises(DetectionsError, match="not the columns"):
        Detections.from_bytes(archive(**fields))


def test_pickled_objects_are_never_loaded() -> None:
    pickled = archive(**{**stored_columns(), "label": np.array([{"a": 1}] * 3, object)})
    with pytest.raises(DetectionsError, match="cannot be read"):
        Detections.from_bytes(pickled)


def test_every_cut_is_refused() -> None:
    data = sample().to_bytes()
    for length in range(0, len(data), 37):
        with pytest.raises(DetectionsError):
            Detections.from_bytes(data[:length])


def test_an_archive_that_unpacks_to_more_than_its_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1000)
    monkeypatch.setattr(np, "load", None)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (*COLUMNS, "format"):
            file.writestr(f"{name}.npy", bytes(500))
    with pytest.raises(DetectionsError, match="unpacks to over 1000 bytes"):
        Detections.from_bytes(buffer.getvalue())


def test_too_many_detections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample().to_bytes()
    monkeypatch.setattr(module, "MAX_DETECTIONS", 2)
    with pytest.raises(DetectionsError, match="over 2 detections"):
        Detections.from_bytes(data)
