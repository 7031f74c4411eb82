"""The Tritons as a process knows them, after they were registered again or not at all any more."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from saucer.publishing import fleet as fleets
from saucer.publishing.domain import Triton
from saucer.publishing.fleet import Fleet
from saucer.publishing.placement import Placement
from saucer.publishing.service.tritons import Tritons
from saucer.publishing.triton import TritonClient, TritonUnavailable

FIRST = Triton("first", "127.0.0.1:1", "/models", "local", "cpu-2", 8, 4)
SECOND = replace(FIRST, triton_id="second", address="127.0.0.1:2")


class Registered:
    """In place of the database."""

    def __init__(self, *tritons: Triton) -> None:
        self.tritons = tritons

    async def list_tritons(self) -> list[tuple[Triton, int]]:
        return [(triton, 0) for triton in self.tritons]


def place(client: TritonClient, triton: Triton) -> Placement:
    """What is registered, which is all that is asked of a placement here."""
    return cast("Placement", triton)


@pytest.fixture
def registered() -> Registered:
    return Registered(FIRST, SECOND)


@pytest.fixture
async def fleet(registered: Registered) -> AsyncIterator[Fleet]:
    made = Fleet(cast("Tritons", registered), "key", place)
    yield made
    await made.close()


async def test_one_that_is_unregistered_is_unknown_after_the_next_look_and_others_are_kept(
    fleet: Fleet, registered: Registered
) -> None:
    kept = await fleet.client("first")
    await fleet.client("second")
    registered.tritons = (FIRST,)
    assert await fleet.refresh() == [FIRST]
    with pytest.raises(TritonUnavailable, match="no Triton second is registered"):
        await fleet.client("second")
    assert await fleet.client("first") is kept


@pytest.mark.parametrize(
    "change", [{"address": "127.0.0.1:3"}, {"region_id": "eu"}, {"spec_id": "gpu-1"}, {"copies": 2}, {"gpu": True}]
)
async def test_one_that_is_registered_again_as_something_else_is_that_from_then_on(
    fleet: Fleet, registered: Registered, change: dict[str, Any]
) -> None:
    await fleet.placement("first")
    changed = replace(FIRST, **change)
    registered.tritons = (changed, SECOND)
    await fleet.refresh()
    assert cast("Triton", await fleet.placement("first")) == changed


@pytest.mark.parametrize(
    "change", [{"room": 4}, {"draining": True}, {"live": True}, {"spec_id": "gpu-1"}, {"copies": 2}]
)
async def test_one_that_is_where_it_was_keeps_its_connection(
    fleet: Fleet, registered: Registered, change: dict[str, Any]
) -> None:
    kept = await fleet.client("first")
    registered.tritons = (replace(FIRST, **change), SECOND)
    await fleet.refresh()
    assert await fleet.client("first") is kept


class Slow(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # it has no types
    """A Triton that answers once it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: object
    ) -> pb.ModelInferResponse:
        self.asked.set()
        await self.let.wait()
        return pb.ModelInferResponse(model_name="slow")


@pytest.fixture
async def slow(registered: Registered) -> AsyncIterator[Slow]:
    """As the first."""
    servicer, server = Slow(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    registered.tritons = (replace(FIRST, address=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"), SECOND)
    await server.start()
    yield servicer
    await server.stop(None)


@pytest.mark.parametrize("left", [(), (FIRST, SECOND)])
async def test_what_was_asked_of_one_that_is_left_is_answered_still_and_no_look_waits_for_it(
    fleet: Fleet, registered: Registered, slow: Slow, left: tuple[Triton, ...]
) -> None:
    former = await fleet.client("first")
    answer = asyncio.create_task(former.forward(pb.ModelInferRequest(model_name="slow")))
    await slow.asked.wait()
    registered.tritons = left
    await asyncio.wait_for(fleet.refresh(), 10.0)
    await asyncio.sleep(0.1)
    slow.let.set()
    assert (await answer).model_name == "slow"
    with pytest.raises(TritonUnavailable, match="not registered at this address"):
        await former.forward(pb.ModelInferRequest(model_name="slow"))
    assert not await former.live()


async def test_what_is_not_answered_in_time_by_one_that_is_left_ends_as_if_it_were_away(
    fleet: Fleet, registered: Registered, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "CLOSE_GRACE_S", 0.1)
    answer = asyncio.create_task((await fleet.client("first")).forward(pb.ModelInferRequest(model_name="slow")))
    await slow.asked.wait()
    registered.tritons = ()
    await fleet.refresh()
    with pytest.raises(TritonUnavailable, match="not registered at this address"):
        await answer
