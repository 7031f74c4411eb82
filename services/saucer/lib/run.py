"""The life of a process: settings, logs, metrics, what it serves and does, and a graceful stop on SIGTERM or SIGINT."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

import grpc
import nats
import nats.errors
import structlog
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext

from saucer.lib import config, grpc_client, telemetry, tracing
from saucer.lib.auth import Verifier
from saucer.lib.clock import PostgresClock
from saucer.lib.consumer import Consumer, Handles
from saucer.lib.dead_events import dead_events_servicer
from saucer.lib.gauges import READ_EVERY_S, Reading, read_all
from saucer.lib.grpc_server import Server, Servicer
from saucer.lib.outbox import Relay
from saucer.lib.postgres import Database, connect, migrate
from saucer.lib.recorded_calls import recorded_calls_servicer
from saucer.lib.records import Recorder
from saucer.lib.retention import FORGET_EVERY_S, Forget, forget, usual
from saucer.lib.rounds import repeat
from saucer.lib.stream import USUAL, ensure_stream, update_stream
from saucer.lib.tls import Identity

# Background work that does not heed its cancellation within this is left behind.
STOP_S = 8.0
NATS_RETRY_S = 0.5

log = structlog.get_logger()
S = TypeVar("S", bound=config.ProcessSettings)


class Process:
    """What a main.py wires, top to bottom; stopped in the opposite order."""

    def __init__(self, name: str, identity: Identity | None = None) -> None:
        self.name = name
        self.identity = identity
        self.stack = AsyncExitStack()
        # Of the gRPC server, once it serves.
        self.address: str | None = None
        # Should the stream have to be made.
        self.stream_shape = USUAL
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None

    def background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs until the stop. Its failure ends the process: a supervisor starts it anew rather than leave it half."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self.stack.push_async_callback(_cancel, task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("background_failed", work=task.get_name(), exc_info=task.exception())
            self.failure = task.exception()
            self.failed.set()

    def rounds(self, name: str, once: Callable[[], Awaitable[object]], every_s: float, *, at_once: bool = True) -> None:
        """The same for work that is done again and again; see repeat()."""
        self.background(name, repeat(name, once, every_s, at_once=at_once))

    async def database(self, settings: config.ServiceSettings, package: str) -> Database:
        """The service's database, migrated."""
        database = await connect(settings.database_url, PostgresClock(), identity=self.identity)
        self.stack.push_async_callback(_close_pool, database)
        await migrate(database, "saucer.lib", package)
        return database

    async def jetstream(self, settings: config.ServerSettings) -> JetStreamContext:
        """JetStream, with the stream in place; waits for a server that is not up yet, reconnects for ever.

        The gateway only reads: its user could not make the stream, and it does without until a service has.
        """
        while True:
            try:
                client: NatsClient = await nats.connect(
                    settings.nats_url,
                    max_reconnect_attempts=-1,
                    name=self.name,
                    error_cb=_nats_error,
                    # Its user may listen nowhere else.
                    inbox_prefix=f"_INBOX_{self.name}".encode(),
                    tls=self.identity.client_context() if self.identity is not None else None,
                )
                break
            except (OSError, nats.errors.Error) as error:
                log.warning("nats_not_up_yet", error=repr(error))
                await asyncio.sleep(NATS_RETRY_S)
        self.stack.push_async_callback(client.close)
        jetstream: JetStreamContext = client.jetstream()
        if isinstance(settings, config.ServiceSettings):
            self.stream_shape = settings.stream_shape
            await ensure_stream(jetstream, self.stream_shape)
        return jetstream

    async def keep_stream(self, jetstream: JetStreamContext) -> None:
        """Brings the stream up to date: for the one service whose user may do that (local/nats_users.py)."""
        await update_stream(jetstream, self.stream_shape)

    def relay(self, database: Database, jetstream: JetStreamContext) -> None:
        """Sends the outbox."""
        replica = f"{socket.gethostname()}-{os.getpid()}"
        relay = Relay(self.name, database, jetstream, replica=replica, shape=self.stream_shape)
        self.background("relay", relay.run())

    def gauges(self, database: Database, *readings: Reading) -> None:
        """Exports what lies in the database: the usual gauges of a service, and its own."""
        self.rounds("gauges", partial(read_all, self.name, database, readings), READ_EVERY_S)

    def retention(self, settings: config.ServiceSettings, database: Database, *rules: Forget) -> None:
        """Forgets what is old: events by their setting, and what the service's own rules say."""
        every = [*usual(settings.events_keep_days, settings.calls_keep_days), *rules]
        self.rounds("retention", partial(forget, self.name, database, every), FORGET_EVERY_S)

    def consumer(self, database: Database, jetstream: JetStreamContext, handlers: Sequence[Handles]) -> Servicer:
        """Takes events; the servicer lists and retries those it could not."""
        consumer = Consumer(self.name, database, jetstream, by_type(handlers), shape=self.stream_shape)
        self.background("consumer", consumer.run())
        return dead_events_servicer(database, consumer)

    def channel(self, address: str) -> grpc.aio.Channel:
        """A channel to another service, closed at the stop."""
        channel = grpc_client.channel(address, self.identity)
        self.stack.push_async_callback(channel.close)
        return channel

    async def serve(
        self, settings: config.ServerSettings, servicers: Sequence[Servicer], database: Database | None = None
    ) -> Server:
        """Starts the gRPC server; the last thing that a main.py does.

        In a database it records who did what, and serves the record besides.
        """
        recorder = None
        if database is not None:
            recorder, servicers = Recorder(database), [*servicers, recorded_calls_servicer(database)]
        server = Server(
            settings.listen,
            Verifier(settings.public_keys_file, settings.revoked_tokens_file),
            servicers,
            self.identity,
            recorder,
            settings.receiving_memory_bytes,
        )
        self.stack.push_async_callback(server.stop)
        await server.start()
        self.address = server.address
        log.info("serving", address=server.address)
        return server


def by_type(handlers: Sequence[Handles]) -> Mapping[str, Handles]:
    """Handlers by event type."""
    return {handles.event_type: handles for handles in handlers}


def run(name: str, kind: type[S], wire: Callable[[Process, S], Awaitable[None]]) -> None:
    """Runs a process until SIGTERM, SIGINT, or a failure in the background, which it raises after stopping.

    With the argument `migrate` a service migrates its database and ends: before a new version is rolled out.
    """
    settings = config.load(kind)
    telemetry.configure_logging(name, json_lines=settings.log_format == "json", level=settings.log_level)
    if sys.argv[1:] == ["migrate"] and isinstance(settings, config.ServiceSettings):
        asyncio.run(_migrate(name, settings))
        return
    asyncio.run(_run(name, settings, wire))


async def _run(name: str, settings: S, wire: Callable[[Process, S], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    heartbeat = telemetry.Heartbeat()
    log.info("metrics", port=telemetry.serve_metrics(settings.metrics_listen, heartbeat))
    process = Process(name, settings.identity)
    if settings.otlp_endpoint:
        stop_tracing = tracing.start(name, settings.otlp_endpoint, settings.trace_ratio)
        process.stack.push_async_callback(asyncio.to_thread, stop_tracing)
    async with process.stack:
        process.background("heartbeat", heartbeat.beat())
        wiring = asyncio.ensure_future(_wire(process, settings, wire))
        ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(process.failed.wait())]
        # A stop must be heeded also while a server that is not up is waited for.
        await asyncio.wait([wiring, *ends], return_when=asyncio.FIRST_COMPLETED)
        if wiring.done():
            wiring.result()
            # Modules and what was wired stay to the end. Otherwise each full collection looks at all of it, and no call
            # is answered for 50 ms.
            gc.collect()
            gc.freeze()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(wiring)
        for end in ends:
            end.cancel()
        log.info("stopping")
    if process.failure is not None:
        raise process.failure


async def _migrate(name: str, settings: config.ServiceSettings) -> None:
    process = Process(name, settings.identity)
    async with process.stack:
        await process.database(settings, f"saucer.{name}")


async def _nats_error(error: Exception) -> None:
    log.warning("nats_error", error=repr(error))


async def _wire(process: Process, settings: S, wire: Callable[[Process, S], Awaitable[None]]) -> None:
    await wire(process, settings)


async def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_S)


async def _close_pool(database: Database) -> None:
    try:
        await asyncio.wait_for(database.pool.close(), STOP_S)
    except TimeoutError:
        database.pool.terminate()
