"""A task that evaluates a model on other data: what its run is given, and how long that may take."""

from saucer.task.defaults import (
    DEFAULT_MAX_DURATION_MS,
    DEFAULT_OUTPUT_PATH,
    Data,
    Derived,
    Machine,
    check_labels,
)
from saucer.task.domain import Config, Form, KnownModel, Refused
from saucer.task.estimating import CPU_S_PER_MEGAPIXEL, GPU_S_PER_MEGAPIXEL, OVERHEAD_MS
from saucer.task.scenes import Scene

# Of what one image of an iteration takes: no way back, and a runtime made for inference.
PREDICTING_SHARE = 0.1


def configure(form: Form, model: KnownModel, scene: Scene | None, data: Data) -> tuple[Config, tuple[Derived, ...]]:
    """What the run is given; `scene` is the model's. Raises Refused if the model cannot be evaluated on the data."""
    if scene is not None:
        check_labels(scene, data)
    if not data.test_images:
        raise Refused("NO_IMAGES", "The data has no test images to evaluate the model on; change the split.")
    unknown = [name for name in data.classes if name not in model.classes]
    if unknown:
        raise Refused(
            "CLASSES_UNKNOWN",
            f"The model does not know the classes {', '.join(unknown)} of the data, so nothing would find them; it "
            f"knows {', '.join(model.classes)}.",
        )
    notes = () if form.max_duration_ms else (Derived("max_duration", str(DEFAULT_MAX_DURATION_MS), "one hour, in ms"),)
    return (
        Config(
            scene=model.scene,
            classes=model.classes,
            manifest_key=data.manifest_key,
            manifest_sha256=data.manifest_sha256,
            image_prefix=data.image_prefix,
            input_size=model.input_size,
            epochs=0,
            lr=0.0,
            batch_size=0,
            warmup=0,
            seed=0,
            expected_accuracy=None,
            max_duration_ms=form.max_duration_ms or DEFAULT_MAX_DURATION_MS,
            starting_point="",
            output_path=form.output_path or DEFAULT_OUTPUT_PATH,
            resume=False,
            model_id=model.model_id,
            classification=scene is not None and scene.classification,
        ),
        notes,
    )


def estimate_ms(config: Config, data: Data, machine: Machine) -> int:
    """Of the whole run, before anything was measured on this spec."""
    megapixels = config.input_size**2 * (data.validation_images + data.test_images) / 1e6
    per_megapixel = GPU_S_PER_MEGAPIXEL / machine.gpus if machine.gpus else CPU_S_PER_MEGAPIXEL / machine.cpu_cores
    return OVERHEAD_MS + round(1000 * PREDICTING_SHARE * megapixels * per_megapixel)
