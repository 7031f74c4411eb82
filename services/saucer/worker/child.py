"""The training child: `python -m saucer.worker.child`.

1. It takes standard output for the protocol (job.py) and points what anybody prints at standard error.
2. It imports torch and MMDetection and finds the faster precision, unless it is told one, so that a job starts at once;
   then it says `ready`.
3. It takes one job after another. A thread reads standard input all the while, so that orders arrive in mid-training.
4. SIGTERM is the order to stop without finishing: save a checkpoint, answer `halted`, and end. SIGINT is ignored: a
   terminal sends it to the whole group, and the parent decides.
5. When standard input ends, the parent is dead and its lease will be: the child ends at once and saves nothing.
6. Started by torch.distributed's launcher, it is one of several that do one job together, and then end: see ranks.py.
"""

import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

from saucer.lib.confinement import end_with_parent
from saucer.worker import job as protocol
from saucer.worker.errors import UserError
from saucer.worker.job import (
    PRECISION_VARIABLE,
    BadMessageError,
    Failure,
    FailureKind,
    Job,
    Kept,
    PredictJob,
    Quit,
    Ready,
    Report,
    Stop,
    TrainJob,
)
from saucer.worker.stopping import Stopper, TrainingClock

EXIT_PARENT_GONE = 3
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""In the environment of what torch.distributed's launcher started."""
MAX_DETAIL_CHARACTERS = 8_000
"""A failure's traceback is cut there, keeping its end."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Outlet:
    """Sends reports from any thread, one line each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def send(self, report: Report) -> None:
        try:
            with self._lock:
                self._file.write(protocol.encode(report))
                self._file.flush()
        except BrokenPipeError:
            os._exit(EXIT_PARENT_GONE)


class Inbox:
    """Reads orders. Jobs wait for the main thread; a stop goes to the last job at once, even one that waits."""

    def __init__(self, file: BinaryIO, outlet: Outlet) -> None:
        self._file = file
        self._outlet = outlet
        self._jobs: queue.SimpleQueue[tuple[Job, Stopper] | None] = queue.SimpleQueue()
        self._stopper: Stopper | None = None
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next_job(self) -> tuple[Job, Stopper] | None:
        """Waits for a job; None means to quit."""
        return self._jobs.get()

    def terminate(self) -> None:
        """SIGTERM: stops the job if there is one, and takes no more."""
        if self._stopper is not None:
            self._stopper.order(Stop("terminated", finish=False))
        self._jobs.put(None)

    def _read(self) -> None:
        while line := self._file.readline(protocol.MAX_LINE_BYTES + 1):
            try:
                self._take(protocol.decode(line))
            except BadMessageError as error:
                self._outlet.send(Failure(FailureKind.USER, f"The job cannot be understood: {error}"))
        os._exit(EXIT_PARENT_GONE)

    def _take(self, message: protocol.Message) -> None:
        match message:
            case TrainJob() | PredictJob():
                self._stopper = Stopper(TrainingClock(time.monotonic), message.max_duration_ms)
                self._jobs.put((message, self._stopper))
            case Kept() if self._stopper is not None:
                self._stopper.kept_iteration = message.iteration
            case Stop() if self._stopper is not None:
                self._stopper.order(message)
            case Quit():
                self._jobs.put(None)
            case _:
                raise BadMessageError(f"{message.type} is no order, or there is no job to stop")


def failure(error: BaseException, job: Job) -> Failure:
    """What to tell about an error that ended a job."""
    detail = "".join(traceback.format_exception(error))[-MAX_DETAIL_CHARACTERS:]
    if isinstance(error, UserError):
        return Failure(FailureKind.USER, str(error), detail)
    text = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY)
    ):
        return Failure(FailureKind.USER, _what_fits(job), detail)
    message = (
        f"Training failed: {type(error).__name__}: {error}. The platform tries again; if it stays, report this log."
    )
    return Failure(FailureKind.PLATFORM, message, detail)


def _what_fits(job: Job) -> str:
    """What the user is told to do. Nothing is tried again with half the batch, not even a derived one: the task states
    it before it starts, with the rate, the warmup and the iterations that follow from it, and a resumed run must go on
    with the very batches that it began with."""
    if not isinstance(job, TrainJob):
        return "The model does not fit into memory. Choose a larger spec."
    smaller = "a smaller batch_size or input_size" if job.batch_size > 1 else "a smaller input_size or starting_point"
    asked = f"Batch size {job.batch_size} at {job.input_size} px"
    return f"{asked} does not fit into memory. Create a task with {smaller}, or on a larger spec."


def main() -> int:
    # Read when libgomp is loaded, which torch does. By default its threads spin at every barrier; beside one other busy
    # process on two cores, an iteration then took 10.3 s instead of 2.1 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Without it cuBLAS refuses deterministic jobs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    outlet = Outlet(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if LAUNCHED in os.environ:
        end_with_parent()  # the launcher
        return _first_of_group(outlet) if os.environ["RANK"] == "0" else _other_of_group()
    inbox = Inbox(sys.stdin.buffer, outlet)
    signal.signal(signal.SIGTERM, lambda *_: inbox.terminate())

    # Only now: these imports take seconds, and stray prints of theirs must not reach the protocol.
    from saucer.worker import trainer  # noqa: PLC0415 - brings torch

    trainer.load_engine()
    precision = os.environ.get(PRECISION_VARIABLE) or trainer.faster_precision()
    outlet.send(Ready(os.getpid(), precision))
    while (taken := inbox.next_job()) is not None:
        outlet.send(_answer(trainer, *taken, precision, outlet))
    return 0


def _first_of_group(outlet: Outlet) -> int:
    inbox = Inbox(sys.stdin.buffer, outlet)
    trainer, ranks = _engine_of_group()
    group = ranks.Group()
    precision = os.environ.get(PRECISION_VARIABLE) or trainer.faster_precision()
    group.watch(outlet.send)
    outlet.send(Ready(os.getpid(), precision))
    taken = inbox.next_job()
    if taken is not None:
        ranks.agreed((taken[0], precision))
        outlet.send(_answer(trainer, *taken, precision, outlet))
    return 0


def _other_of_group() -> int:
    trainer, ranks = _engine_of_group()
    group = ranks.Group()
    job, precision = ranks.agreed(None)
    try:
        trainer.follow(job, precision)
    except Exception as error:  # whatever it is, the first rank tells it
        group.fail(failure(error, job))
        return 1
    return 0


def _engine_of_group() -> tuple[Any, Any]:
    from saucer.worker import ranks, trainer  # noqa: PLC0415 - as in main

    trainer.load_engine()
    return trainer, ranks


def _answer(trainer: Any, job: Job, stopper: Stopper, precision: str, outlet: Outlet) -> Report:
    try:
        answer: Report = (
            trainer.predict(job, stopper, outlet.send)
            if isinstance(job, PredictJob)
            else trainer.run(job, stopper, precision, outlet.send)
        )
    except Exception as error:  # whatever ends a job is told; the child lives on for the next
        return failure(error, job)
    return answer


def _exit(code: int) -> None:
    """Ends without the interpreter's own shutdown, which aborts while a thread waits in a read of standard input."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        _exit(main())
    except BaseException:
        traceback.print_exc()
        _exit(1)
