"""What a process answers on its metrics port."""

import asyncio
import time

import httpx
import pytest

from saucer.lib import telemetry
from saucer.lib.grpc_server import serving
from saucer.lib.telemetry import Heartbeat, serve_metrics
from tests.support.events import until


def status(port: int, path: str) -> int:
    return httpx.get(f"http://127.0.0.1:{port}{path}").status_code


def test_serving_is_told_to_probes_beside_the_metrics() -> None:
    port = serve_metrics("127.0.0.1:0", Heartbeat())
    codes = {}
    for value in (0, 1):
        serving.set(value)
        codes[value] = status(port, "/serving"), status(port, "/alive")
    assert codes == {0: (503, 200), 1: (200, 200)}
    assert "saucer_serving 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text


async def test_an_event_loop_that_is_stuck_is_told_to_probes_until_it_turns_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "BEAT_S", 0.05)
    monkeypatch.setattr(telemetry, "STUCK_S", 1.0)
    serving.set(1)
    heartbeat = Heartbeat()
    port = serve_metrics("127.0.0.1:0", heartbeat)
    beating = asyncio.create_task(heartbeat.beat())

    async def is_well() -> bool:
        return [await asyncio.to_thread(status, port, path) for path in ("/alive", "/serving")] == [200, 200]

    await asyncio.sleep(1.2)
    assert await is_well()
    time.sleep(1.5)  # noqa: ASYNC251 - this is what must be noticed
    assert [status(port, path) for path in ("/alive", "/serving", "/metrics")] == [503, 503, 200]
    await until(is_well)
    beating.cancel()
