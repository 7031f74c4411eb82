"""Requests counted by version in pieces of 15 seconds: what a deployment's monitoring shows.

Durations go into a histogram with fixed bounds a factor 2^(1/4) apart, so that replicas and pieces can be added and a
percentile is at most 19 % above the true one.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

PIECE = timedelta(seconds=15)
# 1 ms to 16 s; a longer request counts as one of the last bound.
BOUNDS_MS = tuple(2 ** (step / 4) for step in range(57))
# So many pieces of one process may wait to be stored, while the database is away; then the oldest are lost.
MAX_WAITING = 10_000


@dataclass
class Piece:
    """Of one version."""

    deployment_id: str
    version_number: int
    began_at: datetime
    requests: int = 0
    errors: int = 0
    busy_ms: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * len(BOUNDS_MS))

    def add(self, other: "Piece") -> None:
        """Another replica's."""
        self.requests += other.requests
        self.errors += other.errors
        self.busy_ms += other.busy_ms
        self.histogram = [mine + its for mine, its in zip(self.histogram, other.histogram, strict=True)]

    def percentile_ms(self, share: float) -> float:
        """The bound below which this share of the models' answers came; 0 without any."""
        below, wanted = 0, share * sum(self.histogram)
        for bound, count in zip(BOUNDS_MS, self.histogram, strict=True):
            below += count
            if count and below >= wanted:
                return bound
        return 0.0

    @property
    def load(self) -> float:
        """Requests that were in progress at a time, on average."""
        return self.busy_ms / (PIECE / timedelta(milliseconds=1))


class Traffic:
    """Counts in memory until what is over is taken away to be stored."""

    def __init__(self) -> None:
        # In the order of time.
        self._pieces: dict[tuple[str, int, datetime], Piece] = {}

    def record(self, deployment_id: str, version_number: int, duration_s: float, failed: bool, now: datetime) -> None:
        """One request that a model was asked, and that has ended now."""
        piece = self._piece(deployment_id, version_number, now)
        milliseconds = duration_s * 1000
        piece.requests += 1
        piece.errors += failed
        piece.busy_ms += round(milliseconds)
        piece.histogram[_place(milliseconds)] += 1

    def refuse(self, deployment_id: str, version_number: int, now: datetime) -> None:
        """One request that no model was asked: it is an error, and has no place among the durations of answers."""
        piece = self._piece(deployment_id, version_number, now)
        piece.requests += 1
        piece.errors += 1

    def _piece(self, deployment_id: str, version_number: int, now: datetime) -> Piece:
        key = (deployment_id, version_number, begin_of(now))
        piece = self._pieces.get(key)
        if piece is None:
            if len(self._pieces) >= MAX_WAITING:
                del self._pieces[next(iter(self._pieces))]
            piece = self._pieces[key] = Piece(*key)
        return piece

    def take_ended(self, now: datetime) -> list[Piece]:
        """Pieces that are over; they are forgotten here."""
        ended = [key for key in self._pieces if key[2] < begin_of(now)]
        return [self._pieces.pop(key) for key in ended]

    def take_all(self) -> list[Piece]:
        """Those that are not over too, once nothing more comes."""
        pieces = list(self._pieces.values())
        self._pieces.clear()
        return pieces

    def put_back(self, pieces: Iterable[Piece]) -> None:
        """They could not be stored. They are older than those that have begun since."""
        older = {(piece.deployment_id, piece.version_number, piece.began_at): piece for piece in pieces}
        waiting = list((older | self._pieces).items())
        self._pieces = dict(waiting[-MAX_WAITING:])


def begin_of(now: datetime) -> datetime:
    """Of the piece that a time is in."""
    return now - timedelta(seconds=now.second % PIECE.seconds, microseconds=now.microsecond)


def merge(pieces: Sequence[Piece]) -> list[Piece]:
    """One for each version and piece of time, in the order of time."""
    merged: dict[tuple[datetime, int], Piece] = {}
    for piece in pieces:
        key = (piece.began_at, piece.version_number)
        if key in merged:
            merged[key].add(piece)
        else:
            merged[key] = piece
    return [merged[key] for key in sorted(merged)]


def _place(milliseconds: float) -> int:
    return min(bisect_left(BOUNDS_MS, milliseconds), len(BOUNDS_MS) - 1)
