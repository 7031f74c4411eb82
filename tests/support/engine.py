"""Engines in the worker's real child that keep a journal: one of the tests' own, with iterations of a fixed length and
checkpoints, where a job has as many iterations as `epochs` says; and the real one.

`python -m tests.support.engine` is the child with the first, `… real` with the second; `… worker` and `… worker real`
are the real worker with that child. The journal, a folder named by ENGINE_JOURNAL, has a file for each run: a line for
each iteration, `attempt iteration seconds`, and `twice` where two processes had the run at once; and one for the trials
of precision, `trials`: a line for each, the worker's process.
"""

import fcntl
import itertools
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saucer.worker import child, child_process
from saucer.worker.errors import HaltedError
from saucer.worker.job import (
    Checkpoint,
    EndReason,
    Halted,
    Progress,
    Report,
    Result,
    Stage,
    StageName,
    TrainJob,
)
from saucer.worker.stopping import Stopper

ITERATION_S = 0.05
CHECKPOINT_EVERY = 10
# A kill loses at most this much, whichever is less.
LOST_ITERATIONS, LOST_S = 50, 30.0
JOURNAL = "ENGINE_JOURNAL"


@dataclass(frozen=True)
class Line:
    """One iteration of one attempt."""

    attempt: int
    iteration: int
    at_s: float


def read_journal(folder: Path, run_id: str) -> list[Line]:
    """Raises ValueError if the run was at work twice at once."""
    lines = []
    for line in (folder / run_id).read_text().splitlines():
        attempt, iteration, at_s = line.split()
        lines.append(Line(int(attempt), int(iteration), float(at_s)))
    return lines


def check_losses(lines: Sequence[Line]) -> int:
    """That no iteration was left out, and no break lost more than is promised; the number of breaks."""
    breaks = 0
    for before, after in itertools.pairwise(lines):
        if after.attempt == before.attempt:
            assert after.iteration == before.iteration + 1
            continue
        breaks += 1
        again = [line for line in lines if line.attempt == before.attempt and line.iteration >= after.iteration]
        print(f"attempt {before.attempt}: killed after {before.iteration}, {len(again)} iterations done again")
        assert len(again) <= LOST_ITERATIONS
        assert not again or before.at_s - again[0].at_s <= LOST_S
    return breaks


@contextmanager
def _journal(job: Any) -> Iterator[Callable[[int], None]]:
    """Takes finished iterations of an attempt."""
    run_id, _, attempt = Path(job.workdir).parent.name.rpartition("-")
    with (Path(os.environ[JOURNAL]) / run_id).open("a", buffering=1) as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.write("twice\n")
        yield lambda iteration: print(attempt, iteration, time.time(), file=journal)


def run(job: TrainJob, stopper: Stopper, precision: str, send: Callable[[Report], None]) -> Report:
    """Trains nothing, for as long as training would take."""
    done = int(Path(job.resume).read_text()) if job.resume else 0
    workdir = Path(job.workdir)
    workdir.mkdir(parents=True)
    with _journal(job) as did:
        stopper.clock.resume_at(job.elapsed_ms)
        stopper.clock.start()
        send(Stage(StageName.TRAINING))
        try:
            while done < job.epochs and not job.finish_only and stopper.check() is None:
                stopper.raise_if_halted()
                time.sleep(ITERATION_S)
                done += 1
                did(done)
                send(Progress(done, job.epochs, done, job.epochs, stopper.clock.elapsed_ms))
                if done % CHECKPOINT_EVERY == 0:
                    file = workdir / f"{done}.pth"
                    file.write_text(str(done))
                    send(Checkpoint(str(file), done, stopper.clock.elapsed_ms))
        except HaltedError:
            return Halted(stopper.stop_reason, None, done, stopper.clock.elapsed_ms)
    return _result(job, stopper, workdir, done)


def _result(job: TrainJob, stopper: Stopper, workdir: Path, done: int) -> Result:
    files = {}
    for kind in ("weights", "onnx", "model", "report"):
        file = workdir / kind
        file.write_text(f"{kind} after {done}")
        files[kind] = str(file)
    reason = EndReason.FINISHED if job.finish_only else stopper.check() or EndReason.COMPLETED
    return Result(reason, files, done, stopper.clock.elapsed_ms, 0.5, stopper.stop_reason)


def _try() -> str:
    with (Path(os.environ[JOURNAL]) / "trials").open("a") as trials:
        print(os.getppid(), file=trials)
    return "bf16"


def _keep_journal() -> None:
    """Of the real engine, which is imported only by the child."""
    answer = child._answer

    def journaled(trainer: Any, job: Any, *rest: Any) -> Report:
        hook = sys.modules["saucer.worker.hooks"].StopHook
        after_train_iter = hook.after_train_iter

        def did_and_told(self: Any, runner: Any, *arguments: Any, **named: Any) -> None:
            did(runner.iter + 1)
            after_train_iter(self, runner, *arguments, **named)

        with _journal(job) as did:
            hook.after_train_iter = did_and_told
            try:
                return answer(trainer, job, *rest)
            finally:
                hook.after_train_iter = after_train_iter

    vars(child)["_answer"] = journaled


def main() -> None:
    """The child, or the worker with it."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["worker"]:
        child_process.PROGRAM = (sys.executable, "-m", "tests.support.engine", *arguments[1:])
        from saucer.worker.main import main as worker  # noqa: PLC0415 - takes PROGRAM as it is now

        worker()
        return
    if arguments == ["real"]:
        _keep_journal()
        child._exit(child.main())
    engine = types.ModuleType("saucer.worker.trainer")
    engine.__dict__.update(load_engine=lambda: None, faster_precision=_try, run=run)
    sys.modules["saucer.worker.trainer"] = engine
    vars(sys.modules["saucer.worker"])["trainer"] = engine
    child._exit(child.main())


if __name__ == "__main__":
    main()
