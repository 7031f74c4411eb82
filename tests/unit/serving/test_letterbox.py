"""Into the square input and back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saucer.serving.letterbox import PAD_VALUE, Placement, into_source, letterbox, place

sides = st.integers(1, 6000)
sizes = st.sampled_from([64, 128, 192, 320, 640])


def into_input(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    return boxes * np.array([placement.scale_x, placement.scale_y] * 2, np.float32)


@given(sides, sides, sizes, st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5))
def test_boxes_come_back_from_the_input_as_they_went(
    width: int, height: int, size: int, corners: list[tuple[float, float, float, float]]
) -> None:
    placement, _, _ = place(width, height, size)
    boxes = np.array(corners, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    back = into_source(into_input(boxes, placement), placement)
    assert back.dtype == np.float32
    assert np.allclose(back, boxes, rtol=1e-5, atol=1e-3)


@given(sides, sides, sizes)
def test_the_whole_image_fills_the_longer_side_of_the_input(width: int, height: int, size: int) -> None:
    placement, inner_width, inner_height = place(width, height, size)
    assert max(inner_width, inner_height) == size
    assert min(inner_width, inner_height) >= 1
    inside = into_input(np.array([[0, 0, width, height]], np.float32), placement)[0]
    assert np.allclose(inside, [0, 0, inner_width, inner_height], atol=1e-2)


@given(sides, sides, sizes)
def test_boxes_beyond_the_image_are_clipped_to_it(width: int, height: int, size: int) -> None:
    placement, _, _ = place(width, height, size)
    outside = np.array([[-50, -50, size + 50, size + 50]], np.float32)
    assert into_source(outside, placement).tolist() == [[0, 0, width, height]]


def test_aspect_is_kept_and_the_border_is_grey() -> None:
    image = np.full((50, 100, 3), 7, np.uint8)
    canvas, placement = letterbox(image, 64)
    assert canvas.shape == (64, 64, 3)
    assert (canvas[:32] == 7).all()
    assert (canvas[32:] == PAD_VALUE).all()
    assert (placement.scale_x, placement.scale_y) == (0.64, 0.64)


def test_a_hair_thin_image_keeps_a_pixel() -> None:
    canvas, placement = letterbox(np.zeros((3000, 1, 3), np.uint8), 64)
    assert (canvas[:, 0] == 0).all()
    assert (placement.width, placement.height) == (1, 3000)
