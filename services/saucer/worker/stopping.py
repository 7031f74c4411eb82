"""When training has to stop, and which reason counts; and what is kept of it by then."""

import threading
from collections.abc import Callable

from saucer.worker.errors import HaltedError
from saucer.worker.job import EndReason, Stop


class TrainingClock:
    """Time trained over all attempts: starts at what earlier ones used, and runs while training runs."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._before_ms = 0
        self._started_s: float | None = None

    def resume_at(self, elapsed_ms: int) -> None:
        self._before_ms = elapsed_ms

    def start(self) -> None:
        self._started_s = self._now_s()

    def stop(self) -> None:
        self._before_ms = self.elapsed_ms
        self._started_s = None

    @property
    def elapsed_ms(self) -> int:
        running = 0.0 if self._started_s is None else self._now_s() - self._started_s
        return self._before_ms + int(running * 1000)


class Stopper:
    """Collects orders from other threads and the time limit; the training thread asks it between iterations.

    The first reason stays. An order to halt comes after it too, since it means that this process is about to end.
    """

    def __init__(self, clock: TrainingClock, max_duration_ms: int) -> None:
        self.clock = clock
        # Of the last checkpoint that the parent called kept.
        self.kept_iteration = 0
        self._max_duration_ms = max_duration_ms
        # Reentrant: a signal handler may interrupt check() in the same thread.
        self._lock = threading.RLock()
        self._reason: EndReason | None = None
        self._order: Stop | None = None
        self._halt = threading.Event()

    def order(self, stop: Stop) -> None:
        with self._lock:
            if self._reason is None:
                self._reason, self._order = EndReason.STOPPED, stop
            if not stop.finish and not self._halt.is_set():
                self._order = stop
                self._halt.set()

    def check(self) -> EndReason | None:
        """The reason to stop training now, if there is one."""
        with self._lock:
            if self._reason is None and self.clock.elapsed_ms >= self._max_duration_ms:
                self._reason = EndReason.DURATION_REACHED
            return self._reason

    @property
    def stop_reason(self) -> str:
        """The reason that the order gave, or nothing."""
        return self._order.reason if self._order is not None else ""

    def raise_if_halted(self) -> None:
        """Raises HaltedError after an order without finish."""
        if self._halt.is_set():
            raise HaltedError(self.stop_reason)
