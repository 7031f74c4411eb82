import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saucer.dataset.boxes import Clipped, clip, own_areas, turn

SIDES = st.integers(8, 5000)
PLACES = st.floats(-1e4, 1e4)
LENGTHS = st.floats(-10, 1e4)


def clip_one(*xywh: float, width: int = 100, height: int = 50) -> Clipped:
    return clip(np.array([xywh], dtype=np.float64), np.array([width]), np.array([height]))


def kind(clipped: Clipped) -> str:
    names = ["not_finite", "no_area", "outside", "clipped"]
    return ",".join(name for name in names if getattr(clipped, name)[0])


@pytest.mark.parametrize(
    ("xywh", "expected", "cut"),
    [
        ((10, 10, 20, 20), "", [10, 10, 20, 20]),
        ((0, 0, 100, 50), "", [0, 0, 100, 50]),
        ((-2, -1, 20, 20), "", [0, 0, 18, 19]),
        ((90, 40, 12, 12), "", [90, 40, 10, 10]),
        ((-3, 0, 20, 20), "clipped", [0, 0, 17, 20]),
        ((-1e308, -1e308, 1.7e308, 1.7e308), "clipped", [0, 0, 100, 50]),
        ((100, 0, 5, 5), "outside", None),
        ((0, 50, 5, 5), "outside", None),
        ((-5, 0, 5, 5), "outside", None),
        ((0, 0, 0, 5), "no_area", None),
        ((20, 20, -10, 10), "no_area", None),
        ((20, 20, 0.0004, 10), "no_area", None),
        ((float("nan"), 0, 5, 5), "not_finite", None),
        ((0, 0, float("inf"), 5), "not_finite", None),
        ((1e308, 0, 1e308, 5), "not_finite", None),
    ],
)
def test_boxes_at_the_edge(xywh: tuple[float, ...], expected: str, cut: list[float] | None) -> None:
    clipped = clip_one(*xywh)
    assert kind(clipped) == expected
    if cut is not None:
        assert clipped.boxes[0].tolist() == cut


@given(PLACES, PLACES, LENGTHS, LENGTHS, SIDES, SIDES)
def test_an_accepted_box_lies_inside_its_image_and_has_an_area(
    x: float, y: float, w: float, h: float, width: int, height: int
) -> None:
    clipped = clip_one(x, y, w, h, width=width, height=height)
    assert int(clipped.not_finite[0]) + int(clipped.no_area[0]) + int(clipped.outside[0]) <= 1
    if not clipped.refused[0]:
        left, top, across, down = clipped.boxes[0].tolist()
        assert left >= 0
        assert top >= 0
        assert across > 0
        assert down > 0
        assert left + across <= width + 1e-9
        assert top + down <= height + 1e-9


@given(PLACES, PLACES, LENGTHS, LENGTHS, SIDES, SIDES)
def test_clipping_twice_changes_nothing(x: float, y: float, w: float, h: float, width: int, height: int) -> None:
    once = clip_one(x, y, w, h, width=width, height=height)
    if not once.refused[0]:
        twice = clip_one(*once.boxes[0].tolist(), width=width, height=height)
        assert kind(twice) == ""
        np.testing.assert_allclose(twice.boxes, once.boxes, atol=1.1e-3)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_turns_with_its_picture(orientation: int) -> None:
    stored = np.zeros((60, 100, 3), dtype=np.uint8)
    stored[10:18, 20:50] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(stored).save(out, "JPEG", quality=100, exif=exif)
    shown = cv2.imdecode(np.frombuffer(out.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    x, y, w, h = cv2.boundingRect((shown[:, :, 0] > 127).astype(np.uint8))

    turned = turn(np.array([[20.0, 10.0, 30.0, 8.0]]), orientation, np.array([60]), np.array([100]))
    assert turned[0].tolist() == [x, y, w, h]


@pytest.mark.parametrize(
    ("area", "kept"),
    [
        (150.5, 150.5),
        (150.12345, 150.123),
        (199.999, 199.999),
        (200.0, np.nan),
        (200.5, np.nan),
        (0.0, np.nan),
        (0.0004, np.nan),
        (-3.0, np.nan),
        (np.inf, np.nan),
        (1e308, np.nan),
        (np.nan, np.nan),
    ],
)
def test_an_area_is_kept_that_is_positive_and_less_than_the_boxs(area: float, kept: float) -> None:
    np.testing.assert_array_equal(own_areas(np.array([area]), np.array([[5.0, 5, 10, 20]])), [kept])
