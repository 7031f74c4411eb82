"""Since when this process has been there: in what it did not attend, nobody may have been served. No I/O.

A good probe shows that Triton serves, and one before it that it did so then. Between the two a caller was answered only
if a process of publishing was there, and PostgreSQL, which each request needs. So a process charges no time before its
own first round, and none before a break between its rounds. One that stands by attends as well: it answers callers, so
what it takes over goes on being counted, the dead replica's lease included.
"""

from datetime import timedelta

# Between two rounds; a longer break was an absence: the process was stopped, or PostgreSQL away. One round and its
# pause are shorter (reconcile.py), so that what answers late is no absence.
ABSENT_AFTER_S = 4.0


class Attendance:
    """Of one process, by its monotonic clock in seconds."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def round(self, now_s: float) -> None:
        """PostgreSQL has answered."""
        if self._since_s is None or now_s - self._last_s > ABSENT_AFTER_S:
            self._since_s = now_s
        self._last_s = now_s

    def lasted(self, now_s: float) -> timedelta:
        """For how long there was no absence; nothing, while there is one."""
        if self._since_s is None or now_s - self._last_s > ABSENT_AFTER_S:
            return timedelta(0)
        return timedelta(seconds=now_s - self._since_s)
