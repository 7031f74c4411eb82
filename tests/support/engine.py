"""An engine of the tests' own in the worker's real child: iterations of a fixed length, checkpoints, and a journal.

`python -m tests.support.engine` is the child, `python -m tests.support.engine worker` the real worker with that child.
A job has as many iterations as `epochs` says. The journal, a folder named by ENGINE_JOURNAL, has a file for each run:
a line for each iteration, `attempt iteration seconds`, and `twice` where two processes had the run at once.
"""

import fcntl
import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def run(job: TrainJob, stopper: Stopper, precision: str, send: Callable[[Report], None]) -> Report:
    """Trains nothing, for as long as training would take."""
    run_id, _, attempt = Path(job.workdir).parent.name.rpartition("-")
    done = int(Path(job.resume).read_text()) if job.resume else 0
    workdir = Path(job.workdir)
    workdir.mkdir(parents=True)
    with (Path(os.environ[JOURNAL]) / run_id).open("a", buffering=1) as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.write("twice\n")
        stopper.clock.resume_at(job.elapsed_ms)
        stopper.clock.start()
        send(Stage(StageName.TRAINING))
        try:
            while done < job.epochs and not job.finish_only and stopper.check() is None:
                stopper.raise_if_halted()
                time.sleep(ITERATION_S)
                done += 1
                journal.write(f"{attempt} {done} {time.time()}\n")
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


def main() -> None:
    """The child, or the worker with it."""
    if sys.argv[1:] == ["worker"]:
        child_process.PROGRAM = (sys.executable, "-m", "tests.support.engine")
        from saucer.worker.main import main as worker  # noqa: PLC0415 - takes PROGRAM as it is now

        worker()
        return
    engine = types.ModuleType("saucer.worker.trainer")
    engine.__dict__.update(load_engine=lambda: None, faster_precision=lambda: "none", run=run)
    sys.modules["saucer.worker.trainer"] = engine
    vars(sys.modules["saucer.worker"])["trainer"] = engine
    child._exit(child.main())


if __name__ == "__main__":
    main()
