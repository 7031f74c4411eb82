"""What a replica that has stood by makes of what it saw before."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from unittest.mock import AsyncMock, Mock

import pytest

from saucer.publishing import reconcile
from saucer.publishing.domain import Triton
from saucer.publishing.reconcile import Reconciler
from tests.support.events import until
from tests.unit.publishing.examples import NOW, active

DEAD = Triton("local", "address", "repository", "local", "cpu-2", room=8, threads=1)
LIVE = replace(DEAD, triton_id="second")
# So long a dead Triton and what nobody wants are left alone; it stands by for longer.
PATIENCE_S = 1.0


async def test_a_dead_triton_and_what_nobody_wants_are_given_their_time_anew_once_the_lease_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = {"TICK_S": 0.01, "LOOK_EVERY_S": 0.01, "ROUND_TIMEOUT_S": 0.2, "LEASE": timedelta(seconds=0.4)}
    for name, value in {**short, "MOVE_AFTER_S": PATIENCE_S, "RETIRE_AFTER_S": PATIENCE_S}.items():
        monkeypatch.setattr(reconcile, name, value)
    clock = asyncio.get_running_loop().time
    acted_s: dict[str, float] = {}

    async def place(*_: object) -> bool:
        acted_s.setdefault("moved", clock())
        return True

    async def remove(_: str) -> None:
        acted_s.setdefault("removed", clock())

    async def held() -> dict[str, list[int]]:
        return {} if "removed" in acted_s else {"orphan": [1]}

    async def both() -> bool:
        return acted_s.keys() == {"moved", "removed"}

    serving = AsyncMock(place=place)
    serving.wanted.return_value = [active()], NOW
    serving.placed.return_value = []
    placements = {
        DEAD.triton_id: AsyncMock(live=AsyncMock(return_value=False)),
        LIVE.triton_id: AsyncMock(held=held, remove=remove),
    }
    fleet = AsyncMock(refresh=AsyncMock(return_value=[DEAD, LIVE]), placement=AsyncMock(side_effect=placements.get))
    running = asyncio.create_task(
        Reconciler(Mock(serving=serving, versions=AsyncMock(), tritons=AsyncMock()), fleet, holder="me").run()
    )
    try:
        await asyncio.sleep(PATIENCE_S / 4)
        serving.take_lease.return_value = False
        await asyncio.sleep(2 * PATIENCE_S)
        assert not acted_s
        begun_s = clock()
        serving.take_lease.return_value = True
        await until(both)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert all(at_s - begun_s >= PATIENCE_S for at_s in acted_s.values()), acted_s
