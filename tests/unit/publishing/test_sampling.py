"""A round of sampling over several Tritons, played."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from saucer.lib.ids import new_id
from saucer.publishing.batching import Counters, CountersAt
from saucer.publishing.fleet import Fleet
from saucer.publishing.placement import model_name
from saucer.publishing.sampling import sample_piece
from saucer.publishing.service.monitoring import Monitoring
from saucer.publishing.triton import Report, TritonUnavailable
from saucer.serving.choosing import Choice
from saucer.serving.runtime import EVALUATED_WITH

BEGAN_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class PlayedTriton:
    """One that carries a model, or does not answer."""

    name: str
    away: bool
    triton_id: str = ""
    live: bool = True

    async def counters(self) -> dict[str, Counters]:
        if self.away:
            raise TritonUnavailable("it does not answer")
        return {self.name: Counters(1, 1, 1, 1)}

    async def report(self, name: str, timeout_s: float) -> Report:
        return Report("p", Choice(EVALUATED_WITH), ())


@dataclass
class PlayedFleet:
    tritons: dict[str, PlayedTriton]

    async def refresh(self) -> list[PlayedTriton]:
        return list(self.tritons.values())

    async def client(self, triton_id: str) -> PlayedTriton:
        return self.tritons[triton_id]


@dataclass
class Kept:
    readings: list[tuple[str, CountersAt]] = field(default_factory=list)
    lines_of: list[str] = field(default_factory=list)

    async def store_readings(self, readings: list[tuple[str, CountersAt]]) -> None:
        self.readings += readings

    async def store_lines(self, deployment_id: str, number: int, triton_id: str, process: str, lines: object) -> None:
        self.lines_of.append(triton_id)


async def test_a_triton_that_does_not_answer_keeps_nothing_of_the_others_back() -> None:
    name = model_name(new_id(), 1)
    tritons = {key: PlayedTriton(name, key == "a", key) for key in ("a", "b")}
    kept = Kept()
    await sample_piece(cast(Fleet, PlayedFleet(tritons)), cast(Monitoring, kept), BEGAN_AT)
    assert [reading.triton_id for _, reading in kept.readings] == ["b"]
    assert kept.lines_of == ["b"]
