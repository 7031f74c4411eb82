"""What is between a client and Triton, without either: whose turn it is while images are looked at."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.errors import InvalidArgumentError, ResourceExhaustedError
from saucer.publishing import endpoint
from saucer.publishing.domain import Deployment
from saucer.publishing.endpoint import Endpoint, Query
from saucer.publishing.limits import Limits
from tests.unit.publishing.examples import active

ID = "00000000-0000-4000-8000-000000000001"


class Around:
    """In place of the deployments, of the fleet, and of Triton."""

    async def get(self, deployment_id: str) -> Deployment:
        return active()

    async def client(self, triton_id: str) -> Any:
        return self

    async def forward(self, request: pb.ModelInferRequest, seconds: float) -> pb.ModelInferResponse:
        return pb.ModelInferResponse()


@pytest.fixture
def asked() -> Endpoint:
    set_current(Principal("ann", Role.OWNER, "a", "token", 0.0))
    around: Any = Around()
    return Endpoint(around, around, Limits(1000, 1e9))


async def test_an_image_is_looked_at_only_once_there_is_a_place_for_its_request(
    asked: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_IN_FLIGHT", 0)
    with pytest.raises(ResourceExhaustedError, match="in progress"):
        await asked.predict(ID, b"no image", None)
    with pytest.raises(ResourceExhaustedError, match="in progress"):
        await asked.infer(ID, "", 0, lambda: Query(pb.ModelInferRequest(), (b"no image",)), None)


async def test_an_account_has_at_most_half_of_the_places_that_the_others_leave_however_many_deployments_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of eight places, three for each of its deployments: an account alone has four, a second two, a third one."""
    monkeypatch.setattr(endpoint, "MAX_IN_FLIGHT", 3)
    monkeypatch.setattr(endpoint, "MAX_IN_FLIGHT_TOTAL", 8)
    go_on = asyncio.Event()

    class Waiting(Around):
        async def get(self, deployment_id: str) -> Deployment:
            return replace(active(), deployment_id=deployment_id, account_id=deployment_id[0])

        async def forward(self, request: pb.ModelInferRequest, seconds: float) -> pb.ModelInferResponse:
            await go_on.wait()
            return pb.ModelInferResponse()

    around: Any = Waiting()
    asked = Endpoint(around, around, Limits(1000, 1e9))

    async def ask(account_id: str, last: str) -> str:
        set_current(Principal("ann", Role.OWNER, account_id, "token", 0.0))
        try:
            await asked.infer(f"{account_id}{ID[1:-1]}{last}", "", 0, lambda: Query(pb.ModelInferRequest(), ()), None)
        except ResourceExhaustedError as error:
            return error.reason
        return "OK"

    requests = [asyncio.create_task(ask(account_id, last)) for account_id in "abc" for last in "11112222"]
    await asyncio.sleep(0.1)
    go_on.set()
    answers = await asyncio.gather(*requests)
    assert [answers[first : first + 8].count("OK") for first in (0, 8, 16)] == [4, 2, 1]
    assert set(answers) == {"OK", "TOO_MANY_REQUESTS"}
    assert await ask("d", "1") == "OK", "no place is lost"


async def test_a_kserve_request_that_is_refused_for_what_it_says_is_a_request_to_the_tokens_limits() -> None:
    set_current(Principal("ann", Role.OWNER, "a", "token", 0.0))
    around: Any = Around()
    asked = Endpoint(around, around, Limits(0.001, 1e9))
    read = 0

    def refuse() -> Query:
        nonlocal read
        read += 1
        raise InvalidArgumentError("INPUT_UNKNOWN", "inputs: there is one.")

    with pytest.raises(InvalidArgumentError):
        await asked.infer(ID, "", 10, refuse, None)
    with pytest.raises(ResourceExhaustedError, match="The token may send"):
        await asked.infer(ID, "", 10, refuse, None)
    assert read == 1


@pytest.mark.parametrize("name", [f"urn:uuid:{ID}", f"{{{ID}}}", ID.replace("-", ""), ID[:9] + ID[9:].replace("-", "")])
async def test_a_deployment_is_found_by_its_id_in_any_spelling_of_a_uuid(
    asked: Endpoint, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    looked_up: list[str] = []

    async def get(around: Around, deployment_id: str) -> Deployment:
        looked_up.append(deployment_id)
        return active()

    monkeypatch.setattr(Around, "get", get)
    await asked.find_side(name, "")
    assert looked_up == [ID], "PostgreSQL reads fewer spellings than Python"


async def test_others_have_their_turn_between_the_images_of_a_request(
    asked: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []

    def look(image: bytes) -> tuple[int, int]:
        turns.append("image")
        return 1, 1

    async def other() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    monkeypatch.setattr(endpoint, "upright_size", look)
    others = asyncio.create_task(other())
    await asyncio.sleep(0)
    await asked.infer(ID, "", 0, lambda: Query(pb.ModelInferRequest(), (b"1", b"2", b"3")), None)
    others.cancel()
    first = turns.index("image")
    assert turns[first : first + 6] == ["image", "other"] * 3
