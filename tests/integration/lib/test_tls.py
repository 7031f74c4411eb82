"""Every port refuses the wrong certificate, the wrong user and the wrong subject: real servers with mutual TLS."""

import importlib.util
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import nats
import nats.errors
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from saucer.billing.main import wire
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.gateway.main import CONTRACTS, GatewaySettings
from saucer.gateway.main import wire as wire_gateway
from saucer.lib import auth, grpc_client
from saucer.lib.clock import PostgresClock
from saucer.lib.config import ServiceSettings, TlsSettings
from saucer.lib.ids import new_id
from saucer.lib.postgres import connect
from saucer.lib.run import Process
from saucer.lib.stream import STREAM
from saucer.lib.tls import Identity
from saucer.local import nats_users
from saucer.local.servers import NatsServer
from tests.support.events import read_events, until
from tests.support.services import Tokens, free_address
from tests.support.tls_postgres import TlsPostgres, tls_postgres

PROJECT = Path(__file__).parents[3]


def make_certificates(folder: Path, *names: str) -> None:
    spec = importlib.util.spec_from_file_location("certificates", PROJECT / "deploy" / "certificates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder, names or module.NAMES)


@dataclass(frozen=True)
class House:
    """PostgreSQL, NATS and billing, all with mutual TLS."""

    certificates: Path
    strangers: Path
    postgres: TlsPostgres
    nats: NatsServer
    database_url: str
    address: str
    tokens: Tokens

    def of(self, name: str) -> Identity:
        folder = self.certificates / name
        return Identity(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")

    @property
    def stranger(self) -> Identity:
        """A certificate of another authority, which believes ours."""
        folder = self.strangers / "billing"
        return Identity(self.certificates / "ca.crt", folder / "tls.crt", folder / "tls.key")


@pytest.fixture(scope="module")
async def house(servers_dir: Path, tokens: Tokens) -> AsyncIterator[House]:
    folder = servers_dir / "tls"
    make_certificates(folder / "certificates")
    make_certificates(folder / "strangers", "billing")

    def of(name: str) -> Identity:
        own = folder / "certificates" / name
        return Identity(own / "ca.crt", own / "tls.crt", own / "tls.key")

    broker = NatsServer(folder / "nats", identity=of("nats"))
    await broker.start()
    async with tls_postgres(folder / "postgres", of("postgres")) as postgres:
        url = postgres.uri("billing", "secret", "billing")
        settings = ServiceSettings(
            listen="127.0.0.1:0",
            nats_url=broker.uri_of("billing"),
            public_keys_file=tokens.public_keys_file,
            database_url=url,
            tls_ca_file=of("billing").ca_file,
            tls_certificate_file=of("billing").certificate_file,
            tls_key_file=of("billing").key_file,
        )
        process = Process("billing", settings.identity)
        async with process.stack:
            await wire(process, settings)
            assert process.address is not None
            yield House(folder / "certificates", folder / "strangers", postgres, broker, url, process.address, tokens)
    await broker.stop()


async def health(channel: grpc.aio.Channel) -> None:
    async with channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)  # type: ignore[attr-defined]


async def test_a_call_and_its_event_go_through_it_all(house: House) -> None:
    async with grpc_client.channel(house.address, house.of("client")) as channel:
        stub = billing_pb2_grpc.BillingServiceStub(channel)
        request = billing_pb2.CreateAccountRequest(
            request_id=new_id(), display_name="A", currency="EUR", reason="a test"
        )
        account = await stub.CreateAccount(request, metadata=house.tokens.metadata(auth.Role.ADMINISTRATOR))
    client = await nats.connect(house.nats.uri, tls=house.of("client").client_context())
    events = await read_events(client.jetstream(), f"saucer.billing.v1.AccountCreated.{account.account_id}.>", count=1)
    assert len(events) == 1
    await client.close()


async def takes_only_ours(house: House, address: str) -> None:
    await health(grpc_client.channel(address, house.of("client")))
    ca_only = grpc.ssl_channel_credentials((house.certificates / "ca.crt").read_bytes())
    for channel in (
        grpc.aio.insecure_channel(address),
        grpc.aio.secure_channel(address, ca_only),
        grpc_client.channel(address, house.stranger),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health(channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_refuses_a_caller_without_a_certificate_of_the_authority(house: House) -> None:
    await takes_only_ours(house, house.address)


async def test_the_gateway_speaks_https_to_callers_and_mutual_tls_to_services(house: House) -> None:
    identity, http = house.of("gateway"), free_address()
    services: dict[str, Any] = {f"{name}_address": house.address for name in CONTRACTS if name != "gateway"}
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        http_listen=http,
        nats_url=house.nats.uri_of("gateway"),
        public_keys_file=house.tokens.public_keys_file,
        **services,
        tls_ca_file=identity.ca_file,
        tls_certificate_file=identity.certificate_file,
        tls_key_file=identity.key_file,
    )
    process = Process("gateway", settings.identity)
    async with process.stack:
        await wire_gateway(process, settings)
        assert process.address is not None
        await takes_only_ours(house, process.address)
        headers = dict(house.tokens.metadata(auth.Role.ADMINISTRATOR))
        ours = ssl.create_default_context(cafile=house.certificates / "ca.crt")
        async with httpx.AsyncClient(base_url=f"https://{http}", verify=ours, headers=headers) as client:
            answer = await client.get("/v1/specs")
            assert (answer.status_code, answer.json()) == (200, {"specs": []})
        theirs = ssl.create_default_context(cafile=house.strangers / "ca.crt")
        for url, context in ((f"https://{http}", theirs), (f"http://{http}", ours)):
            async with httpx.AsyncClient(base_url=url, verify=context, headers=headers) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get("/v1/specs")


async def test_a_caller_refuses_a_server_of_another_authority(house: House) -> None:
    folder = house.strangers / "billing"
    stranger = Identity(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    with pytest.raises(grpc.aio.AioRpcError):
        await health(grpc_client.channel(house.address, stranger))


async def test_postgres_refuses_every_role_but_the_certificates_own(house: House) -> None:
    database = await connect(house.database_url, PostgresClock(), identity=house.of("billing"), pool_size=1)
    await database.pool.close()
    bare = ssl.create_default_context(cafile=house.certificates / "ca.crt")
    for context in (False, bare, house.stranger.client_context(), house.of("task").client_context()):
        with pytest.raises((asyncpg.PostgresError, ssl.SSLError, ConnectionError)):
            await asyncpg.connect(house.database_url, ssl=context)
    wrong_password = house.postgres.uri("billing", "wrong", "billing")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong_password, ssl=house.of("billing").client_context())


async def test_nats_refuses_the_wrong_certificate_and_the_wrong_password(house: House) -> None:
    port = house.nats.ports["client"]
    good = house.of("billing").client_context()
    bare = ssl.create_default_context(cafile=house.certificates / "ca.crt")
    for url, context in (
        (house.nats.uri_of("billing"), bare),
        (house.nats.uri_of("billing"), house.stranger.client_context()),
        (f"nats://billing:wrong@127.0.0.1:{port}", good),
        (f"nats://127.0.0.1:{port}", good),
    ):
        with pytest.raises((nats.errors.Error, OSError)):
            await nats.connect(url, tls=context, allow_reconnect=False, connect_timeout=3)


async def test_a_service_publishes_its_own_events_and_no_others(house: House) -> None:
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(
        house.nats.uri_of("billing"),
        tls=house.of("billing").client_context(),
        inbox_prefix=nats_users.inbox("billing").encode(),
        error_cb=note,
    )
    jetstream = client.jetstream()
    await jetstream.publish("saucer.billing.v1.HoldGranted.a.b.c", b"{}")
    assert refused == []
    forbidden = [
        *(f"saucer.{user}.v1.Forged.a.b.c" for user in nats_users.CONSUMING if user != "billing"),
        f"$JS.API.STREAM.DELETE.{STREAM}",
        f"$JS.API.STREAM.PURGE.{STREAM}",
        f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.task",
        f"$JS.ACK.{STREAM}.task.1.1.1.1.1",
    ]
    for subject in forbidden:
        await client.publish(subject, b"{}")
    await client.subscribe("saucer.>")
    await client.subscribe("_INBOX_task.>")

    async def all_refused() -> bool:
        said = " ".join(refused).lower()
        return all(f'"{subject}"'.lower() in said for subject in (*forbidden, "saucer.>", "_INBOX_task.>"))

    await until(all_refused)
    await client.close()


def test_half_an_identity_stops_the_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUCER_TLS_CA_FILE", str(house.certificates / "ca.crt"))
    with pytest.raises(ValueError, match="TLS needs all of"):
        TlsSettings()
