"""One job from data to result, in the child process."""

import dataclasses
import gc
import importlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from saucer.worker import checkpoint, engine_config, hooks, precision, ranks, splits, stand_ins
from saucer.worker import predict as predicting
from saucer.worker.checkpoint import RunState
from saucer.worker.errors import HaltedError
from saucer.worker.finish import finish
from saucer.worker.hooks import Send
from saucer.worker.job import EndReason, Halted, PredictJob, Result, Stage, StageName, TrainJob
from saucer.worker.pace import Pace
from saucer.worker.stopping import Stopper, TrainingClock

TRIAL_SIZE = 192
TRIAL_BATCH = 4


def load_engine() -> None:
    """Imports MMDetection with everything that a job needs. Takes seconds; the child does it before it has a job."""
    stand_ins.install()
    importlib.import_module("mmdet.utils").register_all_modules(init_default_scope=False)
    for module in ("backbone", "classifier", "metric", "transforms"):
        importlib.import_module(f"saucer.worker.{module}")


def faster_precision() -> str:
    """The precision to train with on this machine: "bf16" or "fp32". Takes a second or two, after load_engine."""
    return precision.faster_precision(*trial_step())


def trial_step() -> tuple[Callable[[], Any], str]:
    """What is timed to choose the precision, and the device that it runs on."""
    torch.set_num_threads(_threads(0))
    detector = build(TrainJob("", "", "", ("any",)))
    device = get_device()
    return precision.trial_step(detector, TRIAL_SIZE, TRIAL_BATCH, device), device


def run(job: TrainJob, stopper: Stopper, faster: str, send: Send) -> Result | Halted:
    """Trains unless the job is to be finished only, and makes the model.

    Raises UserError, CheckpointError, ExportError, or what the engine raises.
    """
    ranks.check_gpus(job.processes)
    _prepare_torch(job)
    attempt = _Attempt(job, stopper, faster, send)
    with _logging(Path(job.workdir) / "log.txt", send) as logger:
        try:
            return attempt.go(logger)
        except HaltedError as halted:
            return Halted(str(halted), attempt.saved, attempt.state.iteration, stopper.clock.elapsed_ms)
        finally:
            del attempt
            gc.collect()


def follow(job: TrainJob, faster: str) -> None:
    """Trains as one of several processes but the first, which orders stops and finishes. Raises as run() does."""
    job = dataclasses.replace(job, workdir=str(Path(job.workdir) / f"rank-{dist.get_rank()}"))
    _prepare_torch(job)
    nothing: Send = lambda _: None  # noqa: E731 - the first tells
    with _logging(Path(job.workdir) / "log.txt", nothing) as logger:
        _Attempt(job, Stopper(TrainingClock(time.monotonic), job.max_duration_ms), faster, nothing).follow(logger)


def _prepare_torch(job: TrainJob) -> None:
    Path(job.workdir).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(max(1, _threads(job.threads) // job.processes))
    torch.use_deterministic_algorithms(job.deterministic)
    torch.backends.cudnn.deterministic = job.deterministic


def predict(job: PredictJob, stopper: Stopper, send: Send) -> Result | Halted:
    """Predicts with a model that is there. Raises as run() does."""
    Path(job.workdir).mkdir(parents=True, exist_ok=True)
    with _logging(Path(job.workdir) / "log.txt", send) as logger:
        logger.info("predicts with a model that is there")
        try:
            return predicting.run(job, stopper, _threads(job.threads), send)
        except HaltedError as halted:
            return Halted(str(halted), None, 0, stopper.clock.elapsed_ms)


class _Attempt:
    """The state of one call of run."""

    def __init__(self, job: TrainJob, stopper: Stopper, faster: str, send: Send) -> None:
        self._job = job
        self._stopper = stopper
        self._send = send
        self.saved = job.resume
        self._resumed: dict[str, torch.Tensor] | None = None
        if job.resume is None:
            self.state = RunState(0, job.elapsed_ms, "fp32" if job.deterministic else faster, [])
        else:
            self._resumed, self.state = checkpoint.load(Path(job.resume))
        stopper.clock.resume_at(self.state.elapsed_ms)

    def go(self, logger: logging.Logger) -> Result:
        self._send(Stage(StageName.PREPARING))
        prepared = splits.prepare(self._job)
        self._stopper.raise_if_halted()
        iterations = self._job.epochs * engine_config.epoch_iterations(self._job, prepared)
        reason = ranks.agreed(self._reason_not_to_train(iterations, validates=prepared.validation is not None))
        if reason is None:
            detector = self._train(prepared, logger)
            torch.set_num_threads(_threads(self._job.threads))
            self._stopper.raise_if_halted()
            reason = self._stopper.check() or self._accuracy_reached() or EndReason.COMPLETED
        else:
            logger.info("not trained further: %s", reason)
            detector = build(self._job)
            detector.load_state_dict(self._resumed or {})
        if self.state.best_weights is not None:
            detector.load_state_dict(self.state.best_weights)
        files = finish(
            self._job,
            prepared,
            detector,
            self.state,
            threads=_threads(self._job.threads),
            raise_if_halted=self._stopper.raise_if_halted,
            send=self._send,
        )
        return Result(
            reason,
            files,
            self.state.iteration,
            self._stopper.clock.elapsed_ms,
            self.state.best_map_50,
            self._stopper.stop_reason if reason is EndReason.STOPPED else "",
            self.saved,
        )

    def follow(self, logger: logging.Logger) -> None:
        """What go() does together with the other processes."""
        prepared = splits.prepare(self._job)
        if ranks.agreed(None) is None:
            self._train(prepared, logger)

    def _accuracy_reached(self) -> EndReason | None:
        best, expected = self.state.best_map_50, self._job.expected_accuracy
        reached = best is not None and expected is not None and best >= expected
        return EndReason.ACCURACY_REACHED if reached else None

    def _reason_not_to_train(self, iterations: int, *, validates: bool) -> EndReason | None:
        """A checkpoint may hold a run whose training had ended when its worker was lost while finishing."""
        if self._job.finish_only:
            return EndReason.FINISHED
        if self._resumed is None:
            return None
        if self.state.iteration >= iterations and (not validates or self.state.validated_iteration >= iterations):
            return self._accuracy_reached() or EndReason.COMPLETED
        return self._accuracy_reached() or self._stopper.check()

    def _train(self, prepared: splits.Splits, logger: logging.Logger) -> nn.Module:
        """Trains to an end, and returns the detector with the average of its weights."""
        job, stopper, state, send = self._job, self._stopper, self.state, self._send
        epoch = engine_config.epoch_iterations(job, prepared)
        iterations = job.epochs * epoch
        pace = Pace()
        keeper = hooks.StateHook(
            state, Path(job.workdir) / "checkpoints", stopper, pace, send, waits_for_kept=job.waits_for_kept
        )
        extra: list[Any] = [
            *([hooks.WeightsHook(Path(job.weights))] if job.weights is not None and job.resume is None else []),
            hooks.StopHook(stopper),
            hooks.PaceHook(state, pace, epoch, iterations, fixed=job.deterministic),
            keeper,
            hooks.ProgressHook(job, state, pace, epoch, stopper, send),
            hooks.ResumeHook(state, job.batch_share),
        ]
        if job.expected_accuracy is not None and prepared.validation is not None:
            extra.append(engine_config.early_stopping(job, job.expected_accuracy))
        backend = hooks.MetricsBackend(state, epoch, Path(job.workdir) / "metrics.jsonl", send)
        config = engine_config.build(job, prepared, state.precision)
        config["default_hooks"]["checkpoint"] = None
        config["custom_hooks"] += extra
        # Without cfg=: mmengine would format the whole configuration anew for each checkpoint.
        runner = Runner(
            **config,
            visualizer={"type": "Visualizer", "vis_backends": [backend]},
            load_from=job.resume,
            resume=job.resume is not None,
            experiment_name=f"run-{uuid.uuid4().hex}",
        )
        for handler in logger.handlers:
            runner.logger.addHandler(handler)
        try:
            runner.train()
        finally:
            for handler in list(runner.logger.handlers):
                runner.logger.removeHandler(handler)
                if handler not in logger.handlers:
                    handler.close()
            self.saved = str(keeper.last) if keeper.last is not None else self.saved
        ranks.wait_for_all()
        return hooks.averaged(runner)


def build(job: TrainJob) -> nn.Module:
    """The job's detector with random weights, after load_engine."""
    init_default_scope("mmdet")
    models = importlib.import_module("mmdet.registry").MODELS
    detector: nn.Module = models.build(engine_config.model(job))
    return detector


def _threads(wanted: int) -> int:
    return wanted or len(os.sched_getaffinity(0))


@contextmanager
def _logging(file: Path, send: Send) -> Iterator[logging.Logger]:
    """The logger "saucer", forwarding to the parent and to log.txt while a job runs."""
    logger = logging.getLogger("saucer")
    logger.setLevel(logging.INFO)
    forwarder = hooks.LogForwarder(file, send)
    logger.addHandler(forwarder)
    try:
        yield logger
    finally:
        logger.removeHandler(forwarder)
        forwarder.close()
