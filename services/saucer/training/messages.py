"""Domain to message, for replies and events alike."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from saucer.lib.clock import to_duration, to_timestamp
from saucer.lib.cloudevent import from_json, to_json
from saucer.training.charging import LEASE_MS
from saucer.training.domain import LogLine, MetricPoint, Model, ModelFile, Prediction, Run
from saucer.training.fleet import Queue, Worker
from saucer.training.v1 import training_pb2, worker_pb2


def run_message(run: Run) -> training_pb2.Run:
    """A run as it is now."""
    request, progress, config = run.request, run.progress, config_message(run.request.config)
    message = training_pb2.Run(
        run_id=request.run_id,
        account_id=request.account_id,
        task_id=request.task_id,
        start_number=request.start_number,
        hold_id=request.hold_id,
        state=training_pb2.RunState.Value(f"RUN_STATE_{run.state}"),
        stage=training_pb2.RunStage.Value(f"RUN_STAGE_{progress.stage}"),
        attempt=run.attempt,
        config=config,
        elapsed=to_duration(progress.elapsed_ms),
        progress=run.done,
        iteration=progress.iteration,
        iterations=progress.iterations,
        epoch=progress.epoch,
        time_left=to_duration(progress.time_left_ms),
        charged_ms=run.meter.charged_ms,
        error_message=run.error_message,
        model_id=run.model_id or "",
        create_time=to_timestamp(run.created_at),
        start_time=to_timestamp(run.started_at),
        end_time=to_timestamp(run.ended_at),
        revision=run.revision,
        dataset_version_id=request.dataset_version_id,
        region_id=request.region_id,
        spec_id=request.spec_id,
        count=request.count,
        best_map_50=None if config.classification else progress.best_accuracy,
        best_top_1=progress.best_accuracy if config.classification else None,
        uncharged=run.exhausted,
    )
    if run.end_reason is not None:
        message.end_reason = training_pb2.EndReason.Value(f"END_REASON_{run.end_reason}")
    return message


def config_message(config: str) -> training_pb2.TrainingConfig:
    """As it is stored."""
    return from_json(config.encode(), training_pb2.TrainingConfig())


def lease_message(run: Run, token: str, model_files: Sequence[ModelFile]) -> worker_pb2.Lease:
    """What a worker needs for its attempt."""
    checkpoint = run.checkpoint
    return worker_pb2.Lease(
        token=token,
        run=run_message(run),
        lease_length=to_duration(LEASE_MS),
        artifact_prefix=run.artifact_prefix,
        checkpoint_key=checkpoint.key if checkpoint else "",
        checkpoint_sha256=checkpoint.sha256 if checkpoint else "",
        elapsed=to_duration(checkpoint.elapsed_ms if checkpoint else 0),
        finish_only=run.finish_only,
        model_files=[file_message(file) for file in model_files],
        traceparent=run.request.traceparent or "",
    )


def prediction_message(prediction: Prediction) -> training_pb2.Prediction:
    """What a run left that only predicts."""
    request, config = prediction.request, config_message(prediction.request.config)
    return training_pb2.Prediction(
        model_id=prediction.model_id,
        account_id=request.account_id,
        task_id=request.task_id,
        run_id=request.run_id,
        classes=config.classes,
        dataset_version_id=request.dataset_version_id,
        manifest_key=config.manifest_key,
        manifest_sha256=config.manifest_sha256,
        image_prefix=config.image_prefix,
        files=[file_message(file) for file in prediction.files],
        label_names=config.label_names,
    )


def model_message(model: Model) -> training_pb2.Model:
    """What a run left."""
    config = config_message(model.config)
    return training_pb2.Model(
        model_id=model.model_id,
        account_id=model.account_id,
        task_id=model.task_id,
        run_id=model.run_id,
        classes=config.classes,
        input_size=config.input_size,
        dataset_version_id=model.dataset_version_id,
        manifest_key=config.manifest_key,
        manifest_sha256=config.manifest_sha256,
        image_prefix=config.image_prefix,
        validation_map_50=None if config.classification else model.best_accuracy,
        validation_top_1=model.best_accuracy if config.classification else None,
        files=[file_message(file) for file in model.files],
        create_time=to_timestamp(model.created_at),
        revision=model.revision,
        display_name=model.task_name,
        scene=config.scene,
        label_names=config.label_names,
        delete_time=to_timestamp(model.deleted_at),
    )


def file_message(file: ModelFile) -> training_pb2.ModelFile:
    """One of a model's files."""
    return training_pb2.ModelFile(name=file.name, key=file.key, size_bytes=file.size_bytes, sha256=file.sha256)


def metric_message(point: MetricPoint) -> training_pb2.MetricPoint:
    """Values at an iteration."""
    return training_pb2.MetricPoint(
        sequence=point.sequence,
        iteration=point.iteration,
        epoch=point.epoch,
        values=point.values,
        time=to_timestamp(point.time),
    )


def worker_message(worker: Worker, now: datetime) -> training_pb2.Worker:
    """A worker at a time."""
    return training_pb2.Worker(
        worker_id=worker.worker_id,
        region_id=worker.region_id,
        spec_id=worker.spec_id,
        state=training_pb2.WorkerState.Value(f"WORKER_STATE_{worker.state(now)}"),
        run_id=worker.run_id or "",
        first_seen_time=to_timestamp(worker.first_seen_at),
        seen_time=to_timestamp(worker.seen_at),
    )


def queue_message(queue: Queue) -> training_pb2.Queue:
    """Of one region and spec."""
    return training_pb2.Queue(
        region_id=queue.region_id,
        spec_id=queue.spec_id,
        queued=queue.queued,
        at_work=queue.at_work,
        workers=queue.workers,
        oldest_queued_time=to_timestamp(queue.oldest_queued_at),
    )


def log_message(line: LogLine) -> training_pb2.LogLine:
    """A line of a run's log."""
    return training_pb2.LogLine(
        sequence=line.sequence,
        time=to_timestamp(line.time),
        level=training_pb2.LogLevel.ValueType(line.level),
        text=line.text,
        attempt=line.attempt,
    )


def log_text(line: LogLine) -> str:
    """A line of an exported log, for people."""
    level = training_pb2.LogLevel.Name(training_pb2.LogLevel.ValueType(line.level)).removeprefix("LOG_LEVEL_")
    text = line.text.replace("\n", "\n    ")
    return f"{line.time.isoformat(timespec='milliseconds')} {level} [{line.attempt}] {text}\n"


def log_json(line: LogLine) -> str:
    """A line of an exported log, for programs."""
    return to_json(log_message(line)).decode() + "\n"


LOG_WRITERS: Mapping[int, Callable[[LogLine], str]] = {
    training_pb2.LOG_FORMAT_TEXT: log_text,
    training_pb2.LOG_FORMAT_JSON: log_json,
}
