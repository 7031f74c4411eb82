"""Domain to message and back, for requests, replies and events alike."""

from typing import Literal

from saucer.billing.v1 import billing_pb2
from saucer.lib.clock import from_duration, from_timestamp, to_duration, to_timestamp
from saucer.task.defaults import Derived
from saucer.task.domain import Config, Form, KnownModel, Progress, Task, TaskKind
from saucer.task.estimating import Pace, megapixels
from saucer.task.parameters import Parameter
from saucer.task.scenes import Scene
from saucer.task.starting_points import StartingPoint
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2

WEIGHTS = "weights.pth"
BEST: tuple[Literal["best_map_50"], Literal["best_top_1"]] = ("best_map_50", "best_top_1")


def read_form(message: task_pb2.TaskForm) -> Form:
    """What the user chose."""
    return Form(
        display_name=message.display_name,
        scene=message.scene,
        remark=message.remark,
        tags=tuple(message.tags),
        dataset_version_id=message.dataset_version_id,
        output_path=message.output_path,
        expected_accuracy=message.expected_accuracy if message.HasField("expected_accuracy") else None,
        max_duration_ms=from_duration(message.max_duration) if message.HasField("max_duration") else None,
        epochs=message.epochs if message.HasField("epochs") else None,
        lr=message.lr if message.HasField("lr") else None,
        batch_size=message.batch_size if message.HasField("batch_size") else None,
        warmup=message.warmup if message.HasField("warmup") else None,
        input_size=message.input_size if message.HasField("input_size") else None,
        region_id=message.region_id,
        spec_id=message.spec_id,
        count=message.count,
        billing_mode=read_billing_mode(message.billing_mode),
        starting_point=message.starting_point,
        seed=message.seed,
        resource_group_id=message.resource_group_id,
        budget_micros=message.budget_micros,
        priority=message.priority,
        kind=TaskKind.PREDICT if message.kind == task_pb2.TASK_KIND_PREDICT else TaskKind.TRAIN,
        model_id=message.model_id,
        base_model_id=message.base_model_id,
    )


def read_billing_mode(mode: billing_pb2.BillingMode.ValueType) -> str:
    """POSTPAID or PREPAID."""
    return billing_pb2.BillingMode.Name(mode).removeprefix("BILLING_MODE_")


def form_message(form: Form) -> task_pb2.TaskForm:
    """The form as it was sent."""
    return task_pb2.TaskForm(
        display_name=form.display_name,
        scene=form.scene,
        remark=form.remark,
        tags=form.tags,
        dataset_version_id=form.dataset_version_id,
        output_path=form.output_path,
        expected_accuracy=form.expected_accuracy,
        max_duration=to_duration(form.max_duration_ms),
        epochs=form.epochs,
        lr=form.lr,
        batch_size=form.batch_size,
        warmup=form.warmup,
        input_size=form.input_size,
        region_id=form.region_id,
        spec_id=form.spec_id,
        count=form.count,
        billing_mode=billing_pb2.BillingMode.Value(f"BILLING_MODE_{form.billing_mode}"),
        starting_point=form.starting_point,
        seed=form.seed,
        resource_group_id=form.resource_group_id,
        budget_micros=form.budget_micros,
        priority=form.priority,
        kind=task_pb2.TaskKind.Value(f"TASK_KIND_{form.kind}"),
        model_id=form.model_id,
        base_model_id=form.base_model_id,
    )


def config_message(config: Config, account_id: str) -> training_pb2.TrainingConfig:
    """What the training is given."""
    return training_pb2.TrainingConfig(
        scene=config.scene,
        classes=config.classes,
        manifest_key=config.manifest_key,
        manifest_sha256=config.manifest_sha256,
        image_prefix=config.image_prefix,
        input_size=config.input_size,
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        warmup=config.warmup,
        seed=config.seed,
        expected_accuracy=config.expected_accuracy,
        max_duration=to_duration(config.max_duration_ms),
        starting_point=config.starting_point,
        output_prefix=f"accounts/{account_id}/{config.output_path}",
        resume=config.resume,
        model_id=config.model_id,
        classification=config.classification,
        label_names=dict(config.label_names),
        weights_key=config.weights_key,
        weights_sha256=config.weights_sha256,
    )


def derived_message(derived: Derived) -> task_pb2.DerivedValue:
    """A default with its reason."""
    return task_pb2.DerivedValue(field=derived.field, value=derived.value, reason=derived.reason)


def scene_message(scene: Scene) -> task_pb2.Scene:
    """A scene as it is offered."""
    return task_pb2.Scene(
        name=scene.name,
        title=scene.title,
        description=scene.description,
        classes=scene.classes,
        expected_accuracy=scene.expected_accuracy,
    )


def starting_point_message(point: StartingPoint) -> task_pb2.StartingPoint:
    """A starting point as it is offered."""
    return task_pb2.StartingPoint(
        name=point.name,
        title=point.title,
        description=point.description,
        fetched=point.fetched,
        classifies=point.classifies,
    )


def parameter_message(parameter: Parameter) -> task_pb2.Parameter:
    """What a form offers for one field."""
    return task_pb2.Parameter(
        name=parameter.name,
        description=parameter.description,
        unit=parameter.unit,
        values=parameter.values,
        minimum=parameter.minimum,
        maximum=parameter.maximum,
        whole=parameter.whole,
        step=parameter.step,
    )


def read_progress(run: training_pb2.Run) -> Progress:
    """What a run's snapshot says."""
    return Progress(
        run_id=run.run_id,
        run_revision=run.revision,
        stage=training_pb2.RunStage.Name(run.stage).removeprefix("RUN_STAGE_"),
        attempt=run.attempt,
        fraction=run.progress,
        iteration=run.iteration,
        iterations=run.iterations,
        epoch=run.epoch,
        elapsed_ms=from_duration(run.elapsed),
        time_left_ms=from_duration(run.time_left) if run.HasField("time_left") else None,
        charged_ms=run.charged_ms,
        best_map_50=next((getattr(run, field) for field in BEST if run.HasField(field)), None),
    )


def read_pace(run: training_pb2.Run) -> Pace | None:
    """What a run took; None if it left nothing, or not all of what its counters say was its own."""
    config, elapsed_ms = run.config, from_duration(run.elapsed)
    # Of a run that predicts, its iterations are the images.
    images = run.iterations if config.model_id else run.iteration * config.batch_size
    work = megapixels(images, config.input_size)
    if config.resume or run.attempt != 1 or not work or not elapsed_ms or not run.model_id:
        return None
    return Pace(
        run_id=run.run_id,
        region_id=run.region_id,
        spec_id=run.spec_id,
        count=run.count,
        starting_point=config.starting_point,
        classification=config.classification,
        dataset_version_id=run.dataset_version_id,
        input_size=config.input_size,
        ms_per_megapixel=elapsed_ms / work,
        overhead_ms=max(0, run.charged_ms - elapsed_ms),
        ended_at=from_timestamp(run.end_time),
    )


def read_model(message: training_pb2.Model, config: training_pb2.TrainingConfig) -> KnownModel:
    """What a run left, and what the run was given."""
    weights = next((file for file in message.files if file.name == WEIGHTS), training_pb2.ModelFile())
    return KnownModel(
        model_id=message.model_id,
        account_id=message.account_id,
        scene=message.scene,
        classes=tuple(message.classes),
        input_size=message.input_size,
        starting_point=config.starting_point,
        weights_key=weights.key,
        weights_sha256=weights.sha256,
        classification=config.classification,
    )


def task_message(task: Task) -> task_pb2.Task:
    """A task as it is now."""
    progress = task.progress
    return task_pb2.Task(
        task_id=task.task_id,
        account_id=task.account_id,
        form=form_message(task.form),
        state=task_pb2.TaskState.Value(f"TASK_STATE_{task.state}"),
        charge_status=billing_pb2.ChargeStatus.Value(f"CHARGE_STATUS_{task.charge_status}"),
        config=config_message(task.config, task.account_id),
        derived_values=[derived_message(Derived(*values)) for values in task.derived],
        start_number=task.start_number,
        hold_id=task.hold_id,
        hold_micros=task.hold_micros,
        price_per_hour_micros=task.price_per_hour_micros,
        currency=task.currency,
        run_id=progress.run_id,
        stage=training_pb2.RunStage.Value(f"RUN_STAGE_{progress.stage}"),
        progress=progress.fraction,
        epoch=progress.epoch,
        elapsed=to_duration(progress.elapsed_ms),
        time_left=to_duration(progress.time_left_ms),
        charged_ms=progress.charged_ms,
        cost_micros=task.cost_micros,
        best_map_50=None if task.config.classification else progress.best_map_50,
        best_top_1=progress.best_map_50 if task.config.classification else None,
        stop_requested=task.stop_requested,
        end_reason=training_pb2.EndReason.Value(f"END_REASON_{task.end_reason}")
        if task.end_reason
        else training_pb2.END_REASON_UNSPECIFIED,
        error_message=task.error_message,
        missing_micros=task.missing_micros,
        model_id=task.model_id,
        evaluation_id=task.evaluation_id,
        test_map_50=None if task.config.classification else task.test_accuracy,
        test_top_1=task.test_accuracy if task.config.classification else None,
        create_time=to_timestamp(task.created_at),
        update_time=to_timestamp(task.updated_at),
        end_time=to_timestamp(task.ended_at),
        delete_time=to_timestamp(task.deleted_at),
        revision=task.revision,
        iteration=progress.iteration,
        iterations=progress.iterations,
        attempt=progress.attempt,
    )
