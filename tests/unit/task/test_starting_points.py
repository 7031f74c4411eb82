"""What a training begins with."""

from dataclasses import replace

import pytest

from saucer.task import scenes
from saucer.task.domain import Form, KnownModel, Refused
from saucer.task.starting_points import STARTING_POINTS, choose
from saucer.worker import job
from saucer.worker.catalogue import PRETRAINED
from tests.unit.task.examples import form

SCENES = scenes.load()
DETECTION, CLASSIFICATION = SCENES["object-detection"], SCENES["image-classification"]
MODEL = KnownModel("m", "a", "object-detection", ("cup",), 192, "rtmdet-s-coco", "system/a/weights.pth", "0" * 64)


def chosen(
    asked: Form, *, images: int = 100, gpus: int = 0, fetches: bool = True, base: KnownModel | None = None
) -> tuple[str, str]:
    return choose(asked, DETECTION, images, gpus, base, fetches=fetches)


def test_the_starting_points_are_the_workers() -> None:
    assert set(STARTING_POINTS) == {str(point) for point in job.StartingPoint}
    assert {name for name, point in STARTING_POINTS.items() if point.fetched} == {str(point) for point in PRETRAINED}


def test_without_a_network_or_a_gpu_it_is_what_comes_with_saucer() -> None:
    assert chosen(form(), gpus=1, fetches=False) == ("imagenet-lite0", "ImageNet weights need no network")
    assert chosen(form(), gpus=0) == ("imagenet-lite0", "the fastest on a machine without a GPU")


@pytest.mark.parametrize(
    ("images", "name"),
    [(10, "tiny"), (999, "tiny"), (1_000, "s"), (10_000, "m"), (49_999, "m"), (50_000, "l"), (10**6, "l")],
)
def test_a_gpu_takes_a_larger_network_for_more_images(images: int, name: str) -> None:
    assert chosen(form(), images=images, gpus=1)[0] == f"rtmdet-{name}-coco"


def test_what_the_user_names_is_taken_and_an_unknown_or_unsuitable_one_refused() -> None:
    assert chosen(form(starting_point="rtmdet-l-coco")) == ("rtmdet-l-coco", "")
    with pytest.raises(Refused, match="there are imagenet-lite0, "):
        chosen(form(starting_point="yolo"))
    with pytest.raises(Refused, match="finds objects"):
        choose(form(starting_point="rtmdet-s-coco"), CLASSIFICATION, 100, 0, None, fetches=True)


def test_an_earlier_model_brings_its_network_and_is_refused_where_it_does_not_fit() -> None:
    assert chosen(form(), base=MODEL)[0] == "rtmdet-s-coco"
    with pytest.raises(Refused, match="of before"):
        chosen(form(), base=replace(MODEL, weights_key=""))
    with pytest.raises(Refused, match="leave starting_point open"):
        chosen(form(starting_point="scratch"), base=MODEL)
    with pytest.raises(Refused, match="cannot become one of"):
        choose(form(), CLASSIFICATION, 100, 0, MODEL, fetches=True)
