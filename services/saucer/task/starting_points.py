"""What a training can begin with, and which of it a form gets that leaves it open."""

from collections.abc import Mapping
from dataclasses import dataclass

from saucer.task.domain import Form, KnownModel, Refused
from saucer.task.scenes import Scene

# From so many training images on, a GPU takes the next larger RTMDet.
SIZES_BY_IMAGES = (
    (0, "rtmdet-tiny-coco"),
    (1_000, "rtmdet-s-coco"),
    (10_000, "rtmdet-m-coco"),
    (50_000, "rtmdet-l-coco"),
)


@dataclass(frozen=True)
class StartingPoint:
    """A network with weights. Those that are `fetched` come over the network the first time."""

    name: str
    title: str
    description: str
    fetched: bool = False
    classifies: bool = False


# The worker's own (worker/job.py) are the same: a test compares them.
STARTING_POINTS: Mapping[str, StartingPoint] = {
    point.name: point
    for point in (
        StartingPoint(
            "imagenet-lite0",
            "EfficientNet-Lite0, ImageNet",
            "RTMDet's head over a small backbone that knows ImageNet. Comes with Saucer; the fastest on a processor.",
            classifies=True,
        ),
        StartingPoint("rtmdet-tiny-coco", "RTMDet tiny, COCO", "Trained on COCO, mAP 0.409 there.", fetched=True),
        StartingPoint("rtmdet-s-coco", "RTMDet small, COCO", "Trained on COCO, mAP 0.445 there.", fetched=True),
        StartingPoint("rtmdet-m-coco", "RTMDet medium, COCO", "Trained on COCO, mAP 0.491 there.", fetched=True),
        StartingPoint("rtmdet-l-coco", "RTMDet large, COCO", "Trained on COCO, mAP 0.513 there.", fetched=True),
        StartingPoint(
            "scratch", "From scratch", "Random weights: RTMDet tiny, or Lite0 for whole images.", classifies=True
        ),
    )
}


def choose(
    form: Form, scene: Scene, training_images: int, gpus: int, base: KnownModel | None, *, fetches: bool
) -> tuple[str, str]:
    """A starting point's name, and why it was chosen; no reason if the user named it.

    Args:
        base: the account's own model that the form starts from. fetches: workers reach the catalogue's addresses.

    Raises:
        Refused: there is none of that name, or it cannot do what the scene does.
    """
    if base is not None:
        return _of_model(form, scene, base), "the network of the model that it starts from"
    if form.starting_point:
        point = STARTING_POINTS.get(form.starting_point)
        if point is None:
            raise Refused(
                "STARTING_POINT_UNKNOWN",
                f"starting_point: there is no {form.starting_point}; there are {', '.join(STARTING_POINTS)}.",
            )
        if scene.classification and not point.classifies:
            raise Refused(
                "STARTING_POINT_UNSUITABLE",
                f"starting_point: {point.name} finds objects; the scene {scene.name} says what a whole image shows.",
            )
        return point.name, ""
    if scene.classification or not fetches:
        return scene.starting_point, "ImageNet weights need no network"
    if not gpus:
        return scene.starting_point, "the fastest on a machine without a GPU"
    name = next(name for least, name in reversed(SIZES_BY_IMAGES) if training_images >= least)
    return name, f"a GPU and {training_images} training images"


def _of_model(form: Form, scene: Scene, base: KnownModel) -> str:
    if not base.weights_key:
        raise Refused("MODEL_UNSUITABLE", "base_model_id: the model is of before trainings could start from one.")
    if form.starting_point not in ("", base.starting_point):
        raise Refused(
            "MODEL_UNSUITABLE",
            f"base_model_id: the model is a {base.starting_point}; leave starting_point open.",
        )
    if base.classification != scene.classification:
        raise Refused(
            "MODEL_UNSUITABLE", f"base_model_id: a model of the scene {base.scene} cannot become one of {scene.name}."
        )
    return base.starting_point
