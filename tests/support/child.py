"""A real training child process, spoken to as the worker's parent process does."""

import dataclasses
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from saucer.worker import child_process
from saucer.worker.job import (
    PRECISION_VARIABLE,
    Failure,
    Halted,
    Job,
    Message,
    Order,
    PredictJob,
    Ready,
    Report,
    Result,
    TrainJob,
    decode,
    encode,
)

T = TypeVar("T")
START_S = 120
ANSWER_S = 240
# Of a job that says no other number. Tests go in pairs, on two cores; two threads each took them half as long again.
THREADS = 1
# By the first child: those after it are spared its trial.
_found: dict[str, str] = {}


class Child:
    """Start it, `send` orders, wait for reports; all reports since the last job are in `reports`."""

    def __init__(self, errors: Path, processes: int = 1, threads: int = THREADS) -> None:
        with errors.open("ab") as file:
            self.process = subprocess.Popen(
                child_process.program(processes),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | _found,
            )
        self.reports: list[Report] = []
        self._threads = threads
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        ready = self.wait_for(Ready, lambda _: True, START_S)
        _found[PRECISION_VARIABLE] = ready.precision

    def send(self, order: Order) -> None:
        assert self.process.stdin is not None
        if isinstance(order, TrainJob | PredictJob):
            self.reports.clear()
            order = dataclasses.replace(order, threads=order.threads or self._threads)
        self.process.stdin.write(encode(order))
        self.process.stdin.flush()

    def wait_for(self, kind: type[T], fits: Callable[[T], bool] = lambda _: True, timeout_s: float = ANSWER_S) -> T:
        """The next report of this kind that fits. Fails if the job ends with another answer before."""
        while True:
            report = self._queue.get(timeout=timeout_s)
            assert report is not None, f"the child ended with {self.process.wait()}"
            assert not isinstance(report, Order)
            self.reports.append(report)
            if isinstance(report, kind) and fits(report):
                return report
            assert not isinstance(report, Result | Halted | Failure), report

    def all(self, kind: type[T]) -> list[T]:
        return [report for report in self.reports if isinstance(report, kind)]

    def run(self, job: Job) -> Result:
        self.send(job)
        return self.wait_for(Result)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> int:
        """Ends the child as a parent's death does; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(decode(line))
        self._queue.put(None)
