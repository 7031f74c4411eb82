"""What the user left open, derived from the data, each value with its reason.

What no form offers is the same in every training, and stands in worker/engine_config.py: the optimiser and its
schedule, the augmentations, and the average of the weights (RTMDet's EMA), which is validated and becomes the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from saucer.task import parameters, starting_points
from saucer.task.domain import Config, Form, KnownModel, Refused
from saucer.task.scenes import Scene

DEFAULT_MAX_DURATION_MS = 3_600_000
DEFAULT_OUTPUT_PATH = "outputs"
_PARAMETERS = {each.name: each for each in parameters.PARAMETERS}
# Sides of the square input that are tried, in pixels; the stride of the network divides them.
INPUT_SIZES = tuple(int(size) for size in _PARAMETERS["input_size"].values)
# Images of one iteration for each GPU, or for a processor.
GPU_BATCH_SIZE = 16
CPU_BATCH_SIZE = 8
MAX_BATCH_SIZE = int(_PARAMETERS["batch_size"].maximum)
# An object should span at least this many pixels of the input, or the network's finest stride cannot place it.
WANTED_OBJECT_PX = 24
# A processor trains at most this size in reasonable time.
CPU_INPUT_SIZE = 320
# Iterations after which a run from ImageNet weights has seen enough: cups and plates reach 0.92 in 180 to 220 of batch
# 8, most of it at the end of the schedule, and each further class asks for some more.
BASE_ITERATIONS = 160
ITERATIONS_PER_CLASS = 20
WARMUP_SHARE = 0.05
MAX_EPOCHS = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """What a dataset version says of itself, as far as defaults depend on it."""

    dataset_version_id: str
    manifest_key: str
    manifest_sha256: str
    image_prefix: str
    classes: tuple[str, ...]
    training_images: int
    validation_images: int
    test_images: int
    # Boxes, crowds left out; images with a label where labels are of whole images.
    training_labels: int
    validation_labels: int
    # In all splits.
    labels: int
    median_width: int
    median_height: int
    median_box_share: float
    # Labels say what an image shows, and not where.
    labels_whole_images: bool = False


@dataclass(frozen=True)
class Machine:
    """What the spec offers. A task takes `count` of the GPUs, or all cores of a machine without."""

    gpus: int
    cpu_cores: int


@dataclass(frozen=True)
class Derived:
    """A value that the user left open."""

    field: str
    value: str
    reason: str


def check_labels(scene: Scene, data: Data) -> None:
    """Raises Refused if the data's labels are not of the kind that the scene learns from."""
    if scene.classification == data.labels_whole_images:
        return
    raise Refused(
        "LABEL_KIND_UNSUITABLE",
        "The data labels objects by boxes; take the scene object-detection, or import a folder for each class."
        if scene.classification
        else "The data labels whole images; take the scene image-classification, or label objects by boxes.",
    )


def check_data(scene: Scene, data: Data) -> None:
    """Raises Refused if the scene cannot be trained on the data."""
    if not data.labels:  # before their kind, which does not matter then
        raise Refused(
            "NO_LABELS", "The data has no labels. Create a draft of it, label its images, and import the draft."
        )
    check_labels(scene, data)
    missing = [name for name in scene.classes if name not in map(scene.class_of, data.classes)]
    if missing:
        raise Refused(
            "CLASSES_MISSING",
            f"The scene {scene.name} needs the classes {', '.join(scene.classes)}; the data lacks "
            f"{', '.join(missing)}. Take the scene object-detection, or rename the labels.",
        )
    if data.training_images == 0 or data.validation_images == 0:
        raise Refused("NO_IMAGES", "The data has no images to train on, or none to validate on; import more.")
    for split, labels in (("training", data.training_labels), ("validation", data.validation_labels)):
        if not labels:
            raise Refused(
                "NO_LABELS",
                f"No image of the {split} split has a label. Label some in a draft and import it, or change the split.",
            )


def derive(
    form: Form, scene: Scene, data: Data, machine: Machine, base: KnownModel | None = None, *, fetches: bool = False
) -> tuple[Config, tuple[Derived, ...]]:
    """The training's configuration with every default filled in, and the reasons. Raises Refused.

    Args:
        base: the account's own model that the form starts from. fetches: workers reach the catalogue's addresses.
    """
    parameters.check(form)
    check_data(scene, data)
    notes: list[Derived] = []
    classes = tuple(dict.fromkeys(map(scene.class_of, data.classes)))

    def choose(field: str, chosen: T | None, value: T, reason: str) -> T:
        if chosen is not None:
            return chosen
        notes.append(Derived(field, str(value), reason))
        return value

    point, why = starting_points.choose(form, scene, data.training_images, machine.gpus, base, fetches=fetches)
    if why:
        notes.append(Derived("starting_point", point, why))
    input_size = choose("input_size", form.input_size, *_input_size(scene, data, machine))
    batch_size = choose("batch_size", form.batch_size, *_batch_size(data, machine, form.count))
    per_epoch = -(-data.training_images // batch_size)
    epochs = choose("epochs", form.epochs, *_epochs(per_epoch, len(classes)))
    iterations = epochs * per_epoch
    warmup = choose(
        "warmup",
        form.warmup,
        max(1, min(100, round(iterations * WARMUP_SHARE))),
        f"{WARMUP_SHARE:.0%} of the {iterations} iterations",
    )
    lr = choose(
        "lr", form.lr, round(0.002 * (batch_size / 8) ** 0.5, 6), "0.002 for a batch of 8, by the root of the batch"
    )
    expected = form.expected_accuracy
    if expected is None and scene.expected_accuracy is not None:
        expected = choose("expected_accuracy", None, scene.expected_accuracy, f"the scene {scene.name}'s own")
    return (
        Config(
            scene=scene.name,
            classes=classes,
            manifest_key=data.manifest_key,
            manifest_sha256=data.manifest_sha256,
            image_prefix=data.image_prefix,
            input_size=input_size,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            warmup=warmup,
            seed=form.seed,
            expected_accuracy=expected,
            max_duration_ms=choose("max_duration", form.max_duration_ms, DEFAULT_MAX_DURATION_MS, "one hour, in ms"),
            starting_point=point,
            output_path=form.output_path or DEFAULT_OUTPUT_PATH,
            resume=False,
            classification=scene.classification,
            label_names=label_names(scene, data),
            weights_key=base.weights_key if base is not None else "",
            weights_sha256=base.weights_sha256 if base is not None else "",
        ),
        tuple(notes),
    )


def label_names(scene: Scene | None, data: Data) -> tuple[tuple[str, str], ...]:
    """Pairs of a label's name in the data and the scene's class that it stands for, where they differ."""
    if scene is None:
        return ()
    return tuple((label, name) for label in data.classes if (name := scene.class_of(label)) != label)


def _input_size(scene: Scene, data: Data, machine: Machine) -> tuple[int, str]:
    if scene.input_size is not None:
        return scene.input_size, f"the scene {scene.name}'s own"
    # A box of the median share of a square input of side s spans s × sqrt(share) pixels.
    span = max(data.median_box_share, 1e-6) ** 0.5
    wanted = min(WANTED_OBJECT_PX / span, max(data.median_width, data.median_height))
    fitting = _first_at_least(INPUT_SIZES, wanted)
    if machine.gpus == 0 and fitting > CPU_INPUT_SIZE:
        return CPU_INPUT_SIZE, f"objects would like {fitting} px, and a machine without a GPU takes {CPU_INPUT_SIZE}"
    return fitting, f"the median object spans {span:.0%} of an image, so {WANTED_OBJECT_PX} px of this input"


def _first_at_least(sizes: Sequence[int], wanted: float) -> int:
    return next((size for size in sizes if size >= wanted), sizes[-1])


def _batch_size(data: Data, machine: Machine, count: int) -> tuple[int, str]:
    """The processes of one training, `count` of them, share it evenly."""
    each = GPU_BATCH_SIZE if machine.gpus else CPU_BATCH_SIZE
    most = min(each, MAX_BATCH_SIZE // count) * count
    if data.training_images >= most * 4:
        return most, "what the spec takes"
    size = max(1, min(most, data.training_images // 4) // count) * count
    return size, f"so that {data.training_images} training images make at least four batches"


def _epochs(per_epoch: int, classes: int) -> tuple[int, str]:
    wanted = BASE_ITERATIONS + ITERATIONS_PER_CLASS * classes
    epochs = max(1, min(MAX_EPOCHS, -(-wanted // per_epoch)))
    return epochs, f"about {wanted} iterations for {classes} classes, at {per_epoch} an epoch"
