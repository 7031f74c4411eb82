"""What Saucer adds to mmengine's training loop, through hooks, a validation loop and a visualizer backend."""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine import dist
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import ValLoop
from mmengine.visualization import BaseVisBackend
from torch import nn

from saucer.worker import randomness, ranks
from saucer.worker.checkpoint import BACKEND, STATE_KEY, RunState, load_weights
from saucer.worker.errors import UserError
from saucer.worker.job import Checkpoint, Log, Metrics, Progress, Report, Stage, StageName, TrainJob, log_lines_cut
from saucer.worker.pace import Pace, validations_left
from saucer.worker.stopping import Stopper

Send = Callable[[Report], None]

CHECKPOINT_ITERATIONS = 40
CHECKPOINT_S = 25.0
"""A lost worker is to lose at most 50 iterations or 30 s, whichever is less. A checkpoint counts once it is in the
object store, so that what is left is for its upload and for the iteration it waits for. Before a validation that would
make the last one older than CHECKPOINT_S there is another: what is lost is training alone, and a validation in which
the worker was lost is made again."""
LOST_ITERATIONS = 50
LOST_S = 30.0
"""A training whose last checkpoints are still on their way waits for them at these bounds; what a validation takes does
not count."""
MAX_HOLD_S = 300.0
"""So long at most: without an object store training goes on, since it would count as stalled, and each attempt after
it."""
HOLD_LOOK_S = 0.05
HOLD_TOLD_S = 5.0
"""A longer wait is told."""
KEPT_CHECKPOINTS = 2
"""The newest; the one before stays while its successor is on its way to the parent's store."""
PROGRESS_S = 0.5
"""Progress is told at most this often."""
VALIDATION_SHARE = 0.1
"""Of the time that training takes, at most about this much goes into validation ..."""
MIN_VALIDATIONS = 6
"""... but a run is validated at least this often."""
LOG_NOISE = (
    "is skipped since",
    "Skip advancing dataloader",
    "is duplicate. It is skipped",
    "paramwise_options",
    "will be deprecated",
    "Exp name:",
)
"""Lines of the engine about its own insides that are left out of the user's log."""
TOP_1 = "top_1"
MONITORS = ("coco/bbox_mAP_50", TOP_1)
"""What a validation is judged by: the engine reports one of them."""
METRIC_NAMES = {
    TOP_1: "top_1",
    "coco/bbox_mAP": "map",
    "coco/bbox_mAP_50": "map_50",
    "coco/bbox_mAP_75": "map_75",
    "loss": "loss",
    "loss_cls": "loss_cls",
    "loss_bbox": "loss_bbox",
    "lr": "lr",
    "base_lr": "lr",  # comes when the backbone has a rate of its own, which is then what "lr" says
    "grad_norm": "grad_norm",
}
"""mmengine's names, and ours; other values are timings that Progress tells already."""


def averaged(runner: Any) -> nn.Module:
    """The model with the average of its weights (EMAHook), which is what is validated and becomes the model."""
    return _average(runner).ema_model.module  # type: ignore[no-any-return]


def _average(runner: Any) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook))


class WeightsHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Begins with weights of another model, as far as they fit."""

    priority = "VERY_HIGH"

    def __init__(self, file: Path) -> None:
        self._file = file

    def before_train(self, runner: Any) -> None:
        """Raises UserError if nothing fits: it is another network's."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own = model.state_dict()
        weights = {
            name: tensor
            for name, tensor in load_weights(self._file).items()
            if name in own and own[name].shape == tensor.shape
        }
        if not any(name.startswith("backbone.") for name in weights):
            raise UserError("The weights to start from are another network's. Choose another starting point.")
        model.load_state_dict(weights, strict=False)
        runner.logger.info("%d of %d tensors come from %s", len(weights), len(own), self._file.name)


class StopHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Ends training between two iterations, at the time limit or by order, and refuses a loss that is no number."""

    priority = "VERY_HIGH"

    def __init__(self, stopper: Stopper) -> None:
        self._stopper = stopper

    def before_train(self, runner: Any) -> None:
        if runner.val_loop is not None:
            runner.val_loop.stopper = self._stopper
        self._stopper.clock.start()

    def after_train(self, runner: Any) -> None:
        self._stopper.clock.stop()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = outputs["loss"].item()
        if not math.isfinite(loss):
            raise UserError(
                f"The loss became {loss} at iteration {runner.iter + 1}. Choose a lower lr or a longer warmup."
            )
        if ranks.agreed(self._stopper.check()) is not None:
            runner.train_loop.stop_training = True


@LOOPS.register_module()
class StoppableValLoop(ValLoop):  # type: ignore[misc]  # mmengine ships no types
    """Validation that a stop order or the time limit cuts short, without metrics: over many images it takes minutes.
    Training goes on as if it had not been: random numbers drawn here are not missed there."""

    stopper: Stopper | None = None
    """Set by StopHook: mmengine builds loops from plain values."""

    def run(self) -> dict[str, float]:
        with randomness.untouched():
            return self._validate()

    def _validate(self) -> dict[str, float]:
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        ranks.share_buffers(self.runner.model)
        self.runner.model.eval()
        self.val_loss.clear()
        for index, batch in enumerate(self.dataloader):
            if self.stopper is not None and ranks.agreed(self.stopper.check()) is not None:
                self.runner.train_loop.stop_training = True
                for metric in self.evaluator.metrics:
                    metric.results.clear()
                # The model has lent its place to the average, which leaves it at a validation's end.
                _average(self.runner).after_val_epoch(self.runner)
                return {}
            self.run_iter(index, batch)
        metrics: dict[str, float] = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics


class PaceHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Measures iterations and validations, and sets the validation interval from what they really take.

    Whole epochs where an epoch is short, parts of one where it is long, so that validation stays near
    VALIDATION_SHARE of the time, with MIN_VALIDATIONS over the run in any case. A resumed run keeps its pace; where
    `fixed`, no clock changes it.
    """

    def __init__(self, state: RunState, pace: Pace, epoch_iterations: int, iterations: int, *, fixed: bool) -> None:
        self._state = state
        self._pace = pace
        self._epoch = epoch_iterations
        self._iterations = iterations
        self._fixed = fixed
        self._ended_s = 0.0

    def before_train(self, runner: Any) -> None:
        self._set(runner, self._state.validation_interval or min(self._epoch, self._iterations // MIN_VALIDATIONS))
        self._ended_s = time.monotonic()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._pace.iteration(self._taken_s())

    def after_val(self, runner: Any) -> None:
        validation_s, iteration_s = self._taken_s(), self._pace.iteration_s
        self._pace.validation(validation_s)
        if not self._fixed and iteration_s is not None:
            self._set(runner, ranks.agreed(self.interval(iteration_s, validation_s)))

    def _taken_s(self) -> float:
        """Since the last iteration or validation."""
        before_s, self._ended_s = self._ended_s, time.monotonic()
        return self._ended_s - before_s

    def interval(self, iteration_s: float, validation_s: float) -> int:
        """Iterations between validations, for these durations."""
        wanted = math.ceil(validation_s / max(iteration_s, 1e-6) * (1 - VALIDATION_SHARE) / VALIDATION_SHARE)
        if wanted > 0.5 * self._epoch:
            wanted = math.ceil(wanted / self._epoch) * self._epoch
        return min(wanted, self._iterations // MIN_VALIDATIONS)

    def _set(self, runner: Any, interval: int) -> None:
        self._state.validation_interval = max(1, interval)
        runner.train_loop.dynamic_milestones = [0]
        runner.train_loop.dynamic_intervals = [self._state.validation_interval]


class StateHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Keeps the best weights, and saves checkpoints from which another attempt goes on as if nothing had happened.

    mmengine's own CheckpointHook keeps the best weights in a file of their own, whose path on another machine means
    nothing; here one file holds all.
    """

    priority = "VERY_LOW"

    def __init__(
        self, state: RunState, folder: Path, stopper: Stopper, pace: Pace, send: Send, *, waits_for_kept: bool
    ) -> None:
        self.state = state
        self.last: Path | None = None
        self._waits_for_kept = waits_for_kept
        self._folder = folder
        self._stopper = stopper
        self._pace = pace
        self._send = send
        self._saved_s = time.monotonic()
        self._saved_iteration = state.iteration
        # In this attempt, without validations, checkpoints and waiting.
        self._trained_s = 0.0
        self._goes_on_s = time.monotonic()
        # Iteration and trained time of the last checkpoint that is kept, and of those on their way.
        self._at_stake = deque([(state.iteration, 0.0)])

    def before_train(self, runner: Any) -> None:
        self._saved_s = self._goes_on_s = time.monotonic()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.state.iteration = runner.iter + 1
        self._trained_s += time.monotonic() - self._goes_on_s
        late = time.monotonic() - self._saved_s >= CHECKPOINT_S
        if ranks.agreed(late or self.state.iteration - self._saved_iteration >= CHECKPOINT_ITERATIONS):
            self._save(runner)
        if self._waits_for_kept:
            self._hold(runner)
        self._goes_on_s = time.monotonic()

    def before_val(self, runner: Any) -> None:
        # Nobody knows how long the first one takes.
        taken_s = self._pace.validation_s or CHECKPOINT_S
        late = time.monotonic() - self._saved_s + taken_s >= CHECKPOINT_S
        if ranks.agreed(late and self.state.iteration > self._saved_iteration):
            self._save(runner)

    def after_val(self, runner: Any) -> None:
        self._goes_on_s = time.monotonic()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.state.validated_iteration = runner.iter
        value = next((metrics[name] for name in MONITORS if metrics and name in metrics), None)
        if value is not None and (self.state.best_map_50 is None or value > self.state.best_map_50):
            weights = averaged(runner).state_dict()
            self.state.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            self.state.best_map_50 = value
            self.state.best_iteration = runner.iter

    def after_train(self, runner: Any) -> None:
        # Also without a new iteration: the last validation's best weights have to be in the file.
        if self.state.iteration > 0:
            self._save(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.state.elapsed_ms = self._stopper.clock.elapsed_ms
        checkpoint[STATE_KEY] = {**vars(self.state), "history": list(self.state.history)}
        # Smoothing windows of log lines, and among them old reasons to stop; nothing that a resumed run may keep.
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def _save(self, runner: Any) -> None:
        """By rank 0, with what it has not of the others."""
        iteration = self.state.iteration
        self.state.random, *self.state.others_random = ranks.gathered(randomness.capture())
        name = f"checkpoint_{iteration}.pth"
        meta = {"epoch": runner.epoch, "iter": iteration}
        runner.save_checkpoint(str(self._folder), name, meta=meta, by_epoch=False, backend_args={"backend": BACKEND})
        self.last = self._folder / name
        self._saved_s, self._saved_iteration = time.monotonic(), iteration
        if not dist.is_main_process():
            return
        self._at_stake.append((iteration, self._trained_s))
        self._send(Checkpoint(str(self.last), iteration, self.state.elapsed_ms))
        saved = sorted(self._folder.glob("checkpoint_*.pth"), key=lambda path: int(path.stem.split("_")[1]))
        for old in saved[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def _hold(self, runner: Any) -> None:
        """While a kill would cost more than it may. Of several processes the first waits, and the others for it."""
        began_s = time.monotonic()
        while self._costs_too_much() and self._stopper.check() is None:
            if time.monotonic() - began_s >= MAX_HOLD_S:
                self._at_stake = deque([self._at_stake[-1]])
                break
            time.sleep(HOLD_LOOK_S)
        waited_s = time.monotonic() - began_s
        if waited_s >= HOLD_TOLD_S:
            runner.logger.info("Training waited %.0f s for the upload of a checkpoint.", waited_s)

    def _costs_too_much(self) -> bool:
        while len(self._at_stake) > 1 and self._at_stake[1][0] <= self._stopper.kept_iteration:
            self._at_stake.popleft()
        iteration, trained_s = self._at_stake[0]
        exceeds = self.state.iteration - iteration >= LOST_ITERATIONS or self._trained_s - trained_s >= LOST_S
        return exceeds and len(self._at_stake) > 1


class ProgressHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Tells how far training is, and in a validation how far that is: who makes no progress counts as stalled."""

    priority = "LOWEST"

    def __init__(
        self, job: TrainJob, state: RunState, pace: Pace, epoch_iterations: int, stopper: Stopper, send: Send
    ) -> None:
        self._job = job
        self._state = state
        self._pace = pace
        self._epoch = epoch_iterations
        self._iterations = job.epochs * epoch_iterations
        self._stopper = stopper
        self._send = send
        self._told_s = -math.inf

    def before_train(self, runner: Any) -> None:
        self._send(Stage(StageName.TRAINING, runner.iter, self._iterations))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self._tell(runner, runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        # However short ago the last iteration was told: a validation's progress counts from its own.
        self._tell(runner, runner.iter)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if time.monotonic() - self._told_s >= PROGRESS_S:
            # The metrics, after the last batch, are one step more.
            self._tell(runner, runner.iter, (batch_idx + 1) / (len(runner.val_loop.dataloader) + 1))

    def after_train(self, runner: Any) -> None:
        self._tell(runner, runner.iter)

    def _tell(self, runner: Any, iteration: int, validated: float = 0.0) -> None:
        self._told_s = time.monotonic()
        epochs = self._job.epochs
        epoch = min(epochs, max(0, iteration - 1) // self._epoch + 1)
        elapsed_ms = self._stopper.clock.elapsed_ms
        left_ms = self._left_ms(iteration, validated, elapsed_ms, validates=runner.val_loop is not None)
        self._send(Progress(iteration, self._iterations, epoch, epochs, elapsed_ms, left_ms, validated))

    def _left_ms(self, iteration: int, validated: float, elapsed_ms: int, *, validates: bool) -> int | None:
        """By the pace of this attempt, the max duration at most."""
        state = self._state
        validations = validations_left(
            iteration, self._iterations, state.validation_interval, state.validated_iteration
        )
        left_s = self._pace.left_s(self._iterations - iteration, validations - validated if validates else 0)
        if left_s is None:
            return None
        return max(0, min(math.ceil(1000 * left_s), self._job.max_duration_ms - elapsed_ms))


class ResumeHook(Hook):  # type: ignore[misc]  # mmengine ships no types
    """Goes on exactly where the checkpoint was written: the images that came next, with the same random numbers, and
    before them the validation that was due."""

    priority = "LOWEST"

    def __init__(self, state: RunState, batch_size: int) -> None:
        self._state = state
        self._batch_size = batch_size

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        loop.dataloader.sampler.skip(runner.iter * self._batch_size)
        # Made now, since it draws a random number; mmengine's own wrapper makes it after the random states are back.
        loop.dataloader_iterator = iter(loop.dataloader)
        states = [self._state.random, *self._state.others_random]
        own = states[dist.get_rank()] if dist.get_rank() < len(states) else None
        if own is not None:
            randomness.restore(own)
        if self._validation_is_due(runner):
            runner.val_loop.run()

    def _validation_is_due(self, runner: Any) -> bool:
        if runner.val_loop is None or runner.iter <= self._state.validated_iteration:
            return False
        return bool(runner.iter == runner.max_iters or runner.iter % self._state.validation_interval == 0)


class MetricsBackend(BaseVisBackend):  # type: ignore[misc]  # mmengine ships no types
    """Receives what LoggerHook reports; sends it, and writes it to metrics.jsonl."""

    def __init__(self, state: RunState, epoch_iterations: int, file: Path, send: Send) -> None:
        super().__init__(str(file.parent))
        self._state = state
        self._epoch = epoch_iterations
        self._file = file
        self._send = send
        file.write_text("".join(json.dumps(line) + "\n" for line in state.history), encoding="utf-8")

    @property
    def experiment(self) -> "MetricsBackend":
        return self

    def _init_env(self) -> None:
        """Nothing to set up."""

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any) -> None:
        values = {METRIC_NAMES[name]: float(scalar_dict[name]) for name in METRIC_NAMES if name in scalar_dict}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if not values:
            return
        metrics = Metrics(step, round(step / self._epoch, 4), values)
        self._state.history.append(asdict(metrics))
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(metrics)) + "\n")
        self._send(metrics)


class LogForwarder(logging.Handler):
    """Sends log records, and appends them to the job's log.txt."""

    def __init__(self, file: Path, send: Send) -> None:
        super().__init__(logging.INFO)
        self._send = send
        self._file = logging.FileHandler(file, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if any(noise in record.getMessage() for noise in LOG_NOISE):
            return
        self._file.emit(record)
        self._send(Log(record.levelname, record.created, log_lines_cut(record.getMessage())))

    def close(self) -> None:
        self._file.close()
        super().close()
