"""A task that evaluates a model on other data: what its run is given."""

from saucer.task.defaults import (
    DEFAULT_MAX_DURATION_MS,
    DEFAULT_OUTPUT_PATH,
    Data,
    Derived,
    check_labels,
    label_names,
)
from saucer.task.domain import Config, Form, KnownModel, Refused
from saucer.task.scenes import Scene


def configure(form: Form, model: KnownModel, scene: Scene | None, data: Data) -> tuple[Config, tuple[Derived, ...]]:
    """What the run is given; `scene` is the model's. Raises Refused if the model cannot be evaluated on the data."""
    if scene is not None:
        check_labels(scene, data)
    if not data.test_images:
        raise Refused("NO_IMAGES", "The data has no test images to evaluate the model on; change the split.")
    names = label_names(scene, data)
    known = {*model.classes, *(label for label, name in names if name in model.classes)}
    unknown = [name for name in data.classes if name not in known]
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
            starting_point=model.starting_point,
            output_path=form.output_path or DEFAULT_OUTPUT_PATH,
            resume=False,
            model_id=model.model_id,
            label_names=names,
            classification=scene is not None and scene.classification,
        ),
        notes,
    )
