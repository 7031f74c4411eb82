"""Labels and detections of a made-up detector, in the numbers of COCO's val2017 or of any other size."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saucer.serving.detections import Detections

# Of val2017: 5,000 images with 36,335 boxes; a usual detector leaves about 30 detections an image.
BOXES_PER_IMAGE = 7.27
DETECTIONS_PER_IMAGE = 30.2
WIDTH, HEIGHT = 640, 480
LARGE_CLASSES = 365
FOUND = 0.75
RIGHT_CLASS = 0.92


@dataclass(frozen=True)
class Split:
    """What a scoring gets: a manifest, and the detections of its two splits."""

    manifest: bytes
    test: bytes
    validation: bytes
    classes: tuple[str, ...]


def split(
    images: int,
    classes: int,
    detections_per_image: float = DETECTIONS_PER_IMAGE,
    *,
    validation_images: int = 0,
    seed: int = 0,
) -> Split:
    """Boxes of all sizes, classes of very different frequency, each label found or not, and much at low scores.

    `images` are those of the test split.
    """
    random = np.random.default_rng(seed)
    tested, images = images, images + validation_images
    share = 1 / np.arange(1, classes + 1) ** 0.8
    boxes = random.poisson(BOXES_PER_IMAGE, images)
    image = np.repeat(np.arange(images), boxes)
    label = random.choice(classes, image.size, p=share / share.sum())
    box = _boxes(random, image.size)

    found = random.random(image.size) < FOUND
    near = np.concatenate([np.flatnonzero(found), random.integers(0, image.size, int(found.sum()))])
    moved = box[near] + random.normal(0, 0.08, (near.size, 4)) * np.tile(box[near, 2:] - box[near, :2], 2)
    moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1)
    right = random.random(near.size) < RIGHT_CLASS
    rest = max(0, round(images * detections_per_image) - near.size)
    detections = Detections(
        images=np.arange(1, images + 1, dtype=np.int64),
        image_id=(np.concatenate([image[near], random.integers(0, images, rest)]) + 1).astype(np.int64),
        box=np.concatenate([moved, _boxes(random, rest)]).astype(np.float32),
        score=np.concatenate(
            [random.beta(5, 2, int(found.sum())), random.beta(1, 6, near.size - int(found.sum()) + rest)]
        ).astype(np.float32),
        label=np.concatenate(
            [np.where(right, label[near], random.integers(0, classes, near.size)), random.integers(0, classes, rest)]
        ).astype(np.int32),
    )
    names = tuple(f"class {number}" for number in range(classes))
    manifest = _manifest(images, tested, names, image, label, box)
    test, validation = _of_images(detections, 1, tested), _of_images(detections, tested + 1, images)
    return Split(manifest, test.to_bytes(), validation.to_bytes(), names)


def large_split() -> Split:
    """50,000 images, 2.5 million detections, LARGE_CLASSES."""
    return split(50_000, LARGE_CLASSES, 50.0, validation_images=10_000)


def _of_images(detections: Detections, first: int, last: int) -> Detections:
    rows = (detections.image_id >= first) & (detections.image_id <= last)
    return Detections(
        detections.images[first - 1 : last],
        detections.image_id[rows],
        detections.box[rows],
        detections.score[rows],
        detections.label[rows],
    )


def _boxes(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    size = np.exp(random.uniform(np.log(12), np.log(300), (count, 2)))
    corner = random.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    box: NDArray[np.float64] = np.concatenate([corner, corner + size], axis=1).round(2)
    return box


def _manifest(
    images: int,
    tested: int,
    names: tuple[str, ...],
    image: NDArray[np.int64],
    label: NDArray[np.int64],
    box: NDArray[np.float64],
) -> bytes:
    size = box[:, 2:] - box[:, :2]
    rows = zip(image.tolist(), label.tolist(), box.tolist(), size.tolist(), strict=True)
    return json.dumps(
        {
            "images": [
                {
                    "id": number + 1,
                    "file_name": f"{number:064x}",
                    "source_name": f"{number:012d}.jpg",
                    "width": WIDTH,
                    "height": HEIGHT,
                    "split": "test" if number < tested else "validation",
                }
                for number in range(images)
            ],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            "annotations": [
                {
                    "id": number,
                    "image_id": of + 1,
                    "category_id": category,
                    "bbox": [x1, y1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
                for number, (of, category, (x1, y1, _, _), (width, height)) in enumerate(rows)
            ],
        }
    ).encode()
