"""What each of NATS' users may publish and listen to, and what not: on a real server."""

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import nats as nats_client
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError

from saucer.gateway.events import EventReader, subject
from saucer.lib.stream import STREAM, StreamShape, ensure_stream, update_stream
from saucer.local import nats_users
from saucer.local.servers import NatsServer
from tests.support.events import until

SERVICES = ("billing", "dataset", "task", "training", "evaluation", "publishing")
USERS = (*SERVICES, "gateway")


@asynccontextmanager
async def logged_in(nats: NatsServer, user: str, refused: set[str]) -> AsyncIterator[Client]:
    """A client, as the processes connect; what the server refuses it is added, in lower case as the client tells it."""

    async def note(error: Exception) -> None:
        refused.update(re.findall(r'"([^"]+)"', str(error).lower()))

    inbox = nats_users.inbox(user).encode()
    client = await nats_client.connect(nats.uri_of(user), inbox_prefix=inbox, error_cb=note)
    try:
        yield client
    finally:
        await client.close()


def consumer_calls(name: str) -> set[str]:
    """By which a service lays its own consumer out and takes from it."""
    verbs = ("DURABLE.CREATE", "CREATE", "MSG.NEXT", "INFO")
    return {f"$JS.API.CONSUMER.{verb}.{STREAM}.{name}" for verb in verbs} | {
        f"$JS.API.CONSUMER.CREATE.{STREAM}.{name}.filter",
        f"$JS.ACK.{STREAM}.{name}.1.1.1.1.1",
    }


def granted(user: str) -> set[str]:
    if user == "gateway":
        verbs = ("CREATE", "INFO", "MSG.NEXT", "DELETE")
        return {f"$JS.API.STREAM.INFO.{STREAM}", *(f"$JS.API.CONSUMER.{verb}.{STREAM}.mine" for verb in verbs)}
    changes = {f"$JS.API.STREAM.UPDATE.{STREAM}"} if user == "billing" else set()
    stream = {f"$JS.API.STREAM.{verb}.{STREAM}" for verb in ("INFO", "CREATE")}
    return {f"saucer.{user}.v1.Told.a.b.c", *stream, *changes, *consumer_calls(user)}


def refused_to(user: str) -> set[str]:
    verbs = ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE", "SNAPSHOT", "LEADER.STEPDOWN")
    consumers: set[str] = set()
    for service in SERVICES:
        consumers |= {*consumer_calls(service), f"$JS.API.CONSUMER.DELETE.{STREAM}.{service}"}
    # To ask how far a service is harms nobody.
    told = {f"$JS.API.CONSUMER.INFO.{STREAM}.{service}" for service in SERVICES} if user == "gateway" else set()
    everything = {
        *(f"saucer.{name}.v1.Forged.a.b.c" for name in USERS if name != user),
        *(f"$JS.API.STREAM.{verb}.{STREAM}" for verb in verbs),
        *consumers,
        f"$JS.API.CONSUMER.CREATE.{STREAM}",
        f"$JS.API.DIRECT.GET.{STREAM}",
        "$JS.API.STREAM.CREATE.ANOTHER",
        "$SYS.REQ.SERVER.PING",
    }
    return everything - granted(user) - told


def lower(subjects: Iterable[str]) -> set[str]:
    return {each.lower() for each in subjects}


@pytest.mark.parametrize("user", USERS)
async def test_a_user_publishes_what_its_service_needs_and_nothing_else(
    nats: NatsServer, jetstream: JetStreamContext, user: str
) -> None:
    refused: set[str] = set()
    async with logged_in(nats, user, refused) as client:
        for each in (*granted(user), *refused_to(user)):
            await client.publish(each, b"{}")

        async def told() -> bool:
            return len(refused) >= len(refused_to(user))

        await until(told)
    assert refused == lower(refused_to(user))


@pytest.mark.parametrize("user", USERS)
async def test_a_user_hears_answers_to_itself_alone(nats: NatsServer, user: str) -> None:
    others = {f"_INBOX_{other}.>" for other in USERS if other != user}
    wrong = {*others, ">", "saucer.>", "_INBOX.>", "$JS.>", "$SYS.>"}
    refused: set[str] = set()
    async with logged_in(nats, user, refused) as client:
        for each in (f"_INBOX_{user}.>", *wrong):
            await client.subscribe(each)

        async def told() -> bool:
            return len(refused) >= len(wrong)

        await until(told)
    assert refused == lower(wrong)


async def test_a_service_makes_the_stream_that_is_missing_and_one_alone_changes_it(
    nats: NatsServer, jetstream: JetStreamContext
) -> None:
    await jetstream.delete_stream(STREAM)
    async with logged_in(nats, "task", set()) as client:
        await ensure_stream(client.jetstream())
    async with logged_in(nats, "billing", set()) as client:
        await update_stream(client.jetstream(), StreamShape(keep_days=3))
    assert (await jetstream.stream_info(STREAM)).config.max_age == 3 * 24 * 3600


async def test_the_gateway_reads_events_and_leaves_nothing_but_what_was_there(
    nats: NatsServer, jetstream: JetStreamContext
) -> None:
    await jetstream.add_consumer(STREAM, ConsumerConfig(durable_name="task"))
    headers = {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": "s", "ce-time": "2026-11-01T00:00:00Z"}
    await jetstream.publish("saucer.task.v1.Told.a.b.c", b"{}", headers={**headers, "ce-specversion": "1.0"})
    async with logged_in(nats, "gateway", set()) as client:
        reader = EventReader(client.jetstream(), subject("a", None), 0, until_now=True)
        await anext(aiter(reader.read()), None)
        assert reader._sequence == 1
        # Nor does it get at a service's consumer under a name of its own.
        stolen = ConsumerConfig(name="mine", durable_name="task", filter_subject="saucer.nothing.>")
        with pytest.raises(APIError, match="durable"):
            await client.jetstream().add_consumer(STREAM, stolen)

    async def consumers() -> list[str]:
        return [each.name for each in await jetstream.consumers_info(STREAM)]

    async def alone() -> bool:
        return await consumers() == ["task"]

    await until(alone)
    assert (await jetstream.consumer_info(STREAM, "task")).config.filter_subject is None
