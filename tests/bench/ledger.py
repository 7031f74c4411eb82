"""The ledger's speed on one hot account: statements by pgbench, the use case in Python, the call over gRPC, growth."""

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc

from saucer.billing.store.holds import HOLD_STATEMENT
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.lib import auth
from saucer.lib.ids import new_id
from saucer.local.ports import choose_port
from saucer.local.servers import NatsServer, PostgresServer
from saucer.task.v1 import task_pb2, task_pb2_grpc
from tests.bench._handler_stack import server as empty_server
from tests.bench.harness import Row, Say, compare
from tests.support.ledger import HOUR_MS, REGION, SPEC, Ledger, open_ledger, request_of

CLIENTS = 8
PGBENCH_S = 2
CALLERS = 64
CALLS_EACH = 8
TOGETHER = 64
BALANCE_MICROS = 10**15
SMALL_LEDGER, LARGE_LEDGER = 1_000, 1_000_000
SETTLEMENTS = 40


async def measure(say: Say) -> list[Row]:
    """The rows of the issue, in its order."""
    rows: list[Row] = []
    with _folder() as folder, _folder("/dev/shm") as in_memory:
        async with (
            _postgres(folder / "disk") as disk,
            _postgres(in_memory / "postgres") as memory,
            AsyncExitStack() as stack,
        ):
            rows.append(await _statement("hold_disk_per_s", ">= 0.55", disk, folder, 1, _bare_update, say))
            rows.append(await _statement("hold_shm_per_s", ">= 0.80", memory, folder, 1, _bare_rows, say))
            rows.append(await _statement("hold_many_disk_per_s", ">= 6", disk, folder, TOGETHER, _bare_update, say))
            rows.append(await _coalesced(stack, disk, say))
            # A server of its own: the one above is still clearing away what the rows before have left.
            calls = await stack.enter_async_context(_postgres(folder / "calls"))
            rows.append(await _over_grpc(stack, calls, folder, say))
            rows.append(await _growth(stack, memory, say))
    return rows


@contextlib.contextmanager
def _folder(parent: str | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[PostgresServer]:
    """With everything durable, as it runs for users."""
    server = PostgresServer(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _ledger(stack: AsyncExitStack, server: PostgresServer) -> tuple[Ledger, str, str]:
    """A ledger, its URL and a rich account."""
    url = await server.database(f"bench_{new_id().replace('-', '')}")
    ledger = await open_ledger(stack, url)
    return ledger, url, await ledger.account(BALANCE_MICROS)


# Statements


async def _statement(
    name: str,
    goal: str,
    server: PostgresServer,
    folder: Path,
    holds: int,
    reference: Callable[[str], str],
    say: Say,
) -> Row:
    async with AsyncExitStack() as stack:
        _, url, account_id = await _ledger(stack, server)
        ours, bare = folder / f"{name}.sql", folder / f"{name}_reference.sql"
        ours.write_text(_hold_script(account_id, holds))
        bare.write_text(reference(account_id))

        async def ours_per_s() -> float:
            return holds * await _pgbench(server, url, ours)

        return await compare(
            name, "holds/s", goal, ours=ours_per_s, reference=lambda: _pgbench(server, url, bare), say=say
        )


def _hold_script(account_id: str, holds: int) -> str:
    """The statement of store.py. Its ids are made by the server, which costs it a little that clients pay otherwise: of
    starts they rise with time, as new_id() makes them, of transfers they do not, as those that derived_id() makes."""

    def column(expression: str) -> str:
        return f"ARRAY[{', '.join([expression] * holds)}]"

    values = [
        f"'{account_id}'::uuid",
        "clock_timestamp()",
        column("uuidv7()::text || '-1'"),
        column("'TASK'::text"),
        column("uuidv7()"),
        column("1"),
        column(f"'{REGION}'::text"),
        column(f"'{SPEC}'::text"),
        column("1"),
        column("'EUR'::text"),
        column("1::bigint"),
        column("2::bigint"),
        column("gen_random_uuid()"),
        column("false"),
    ]
    return re.sub(r"\$(\d+)", lambda found: values[int(found[1]) - 1], HOLD_STATEMENT).strip() + ";\n"


def _bare_update(account_id: str) -> str:
    return (
        "UPDATE account SET available_micros = available_micros - 2, frozen_micros = frozen_micros + 2, "
        f"version = version + 1 WHERE account_id = '{account_id}';\n"
    )


def _bare_rows(account_id: str) -> str:
    """The same rows, without a decision."""
    return f"""
WITH ids AS MATERIALIZED (SELECT uuidv7() AS work_id, gen_random_uuid() AS transfer_id), moved AS (
    UPDATE account SET available_micros = available_micros - 2, frozen_micros = frozen_micros + 2, version = version + 1
    WHERE account_id = '{account_id}' RETURNING account_id, available_micros, frozen_micros, version
), held AS (
    INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                      price_per_hour_micros, amount_micros, state, created_at, granted_at)
    SELECT work_id || '-1', account_id, 'TASK', work_id, 1, '{REGION}', '{SPEC}', 1, 'EUR', 1, 2, 'GRANTED',
           clock_timestamp(), clock_timestamp() FROM moved, ids
)
INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                      frozen_micros, created_at)
SELECT transfer_id, 'HOLD', account_id, version, work_id || '-1', 2, available_micros, frozen_micros, clock_timestamp()
FROM moved, ids;
"""


async def _pgbench(server: PostgresServer, url: str, script: Path) -> float:
    """Transactions a second."""
    process = await asyncio.create_subprocess_exec(
        str(server.programs / "pgbench"),
        *("--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=2", f"--time={PGBENCH_S}"),
        *(f"--file={script}", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    found = re.search(rb"tps = ([0-9.]+)", output)
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench: {errors.decode()}")
    return float(found[1])


# The use case


async def _coalesced(stack: AsyncExitStack, server: PostgresServer, say: Say) -> Row:
    ledger, _, account_id = await _ledger(stack, server)

    async def together() -> None:
        await ledger.billing.holds.create(request_of(account_id))

    async def alone() -> None:
        # What coalescing sends, with a single request in it.
        await ledger.billing.holds._create_all(account_id, [request_of(account_id)])

    return await compare(
        "hold_coalesced_per_s",
        "holds/s",
        ">= 3",
        ours=lambda: _per_s(together),
        reference=lambda: _per_s(alone),
        say=say,
    )


async def _per_s(call: Callable[[], Awaitable[None]]) -> float:
    """Calls a second of CALLERS at once."""

    async def caller() -> None:
        for _ in range(CALLS_EACH):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return CALLERS * CALLS_EACH / (time.perf_counter() - started)


# Over gRPC


async def _over_grpc(stack: AsyncExitStack, server: PostgresServer, folder: Path, say: Say) -> Row:
    private, public = folder / "private.pem", folder / "public.json"
    auth.generate_keys(private, public, "bench")

    def token(role: auth.Role, account_id: str | None = None) -> str:
        return auth.mint(
            private.read_bytes(),
            "bench",
            token_id=new_id(),
            subject="bench",
            role=role,
            account_id=account_id,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )

    _, url, account_id = await _ledger(stack, server)
    nats = NatsServer(folder / "nats")
    await nats.start()
    stack.push_async_callback(nats.stop)
    settings = {
        "SAUCER_LISTEN": f"127.0.0.1:{choose_port()}",
        "SAUCER_NATS_URL": nats.uri,
        "SAUCER_PUBLIC_KEYS_FILE": str(public),
        "SAUCER_DATABASE_URL": url,
        "SAUCER_LOG_LEVEL": "ERROR",
    }
    billing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "saucer.billing.main"), env=dict(os.environ) | settings
    )
    stack.push_async_callback(_end, billing)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(settings["SAUCER_LISTEN"]))
    await asyncio.wait_for(channel.channel_ready(), 30)
    address, _ = await stack.enter_async_context(empty_server(str(public)))
    empty_channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    stub, empty = billing_pb2_grpc.BillingServiceStub(channel), task_pb2_grpc.TaskServiceStub(empty_channel)
    as_service = (("authorization", f"Bearer {token(auth.Role.SERVICE)}"),)
    as_viewer = (("authorization", f"Bearer {token(auth.Role.VIEWER, account_id)}"),)

    async def hold() -> None:
        work_id = new_id()
        request = billing_pb2.CreateHoldRequest(
            hold_id=f"{work_id}-1",
            account_id=account_id,
            work_kind=billing_pb2.WORK_KIND_TASK,
            work_id=work_id,
            start_number=1,
            region_id=REGION,
            spec_id=SPEC,
            count=1,
        )
        await stub.CreateHold(request, metadata=as_service, timeout=30)

    async def nothing() -> None:
        await empty.ListScenes(task_pb2.ListScenesRequest(), metadata=as_viewer, timeout=30)

    return await compare(
        "create_hold_rpc_per_s",
        "calls/s",
        ">= 0.50",
        ours=lambda: _per_s(hold),
        reference=lambda: _per_s(nothing),
        say=say,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()


# Growth


async def _growth(stack: AsyncExitStack, server: PostgresServer, say: Say) -> Row:
    small, large = [await _filled(stack, server, entries) for entries in (SMALL_LEDGER, LARGE_LEDGER)]
    return await compare(
        "settle_growth",
        "ms",
        "<= 1.5",
        ours=lambda: _settlement_ms(*large),
        reference=lambda: _settlement_ms(*small),
        say=say,
    )


async def _filled(stack: AsyncExitStack, server: PostgresServer, entries: int) -> tuple[Ledger, str]:
    """A ledger whose account has so many entries already: top-ups of one micro, two entries each."""
    ledger, url, account_id = await _ledger(stack, server)
    connection = await asyncpg.connect(url, command_timeout=300)
    await connection.execute(
        """
        INSERT INTO transfer (transfer_id, kind, account_id, account_version, amount_micros, available_micros,
                              frozen_micros, reference, created_at)
        SELECT gen_random_uuid(), 'TOP_UP', $1, 1 + n, 1, 0, 0, gen_random_uuid()::text, now()
        FROM generate_series(1, $2::integer / 2) AS n
        """,
        account_id,
        entries,
    )
    await connection.execute("UPDATE account SET version = 1 + $1::integer / 2", entries)
    await connection.execute("ANALYZE")
    await connection.close()
    return ledger, account_id


async def _settlement_ms(ledger: Ledger, account_id: str) -> float:
    """Of an hourly settlement, on average."""
    request = request_of(account_id)
    await ledger.billing.holds.create(request)
    started = time.perf_counter()
    for hour in range(1, SETTLEMENTS + 1):
        await ledger.billing.holds.advance(request.hold_id, hour * HOUR_MS, running=True)
    spent_s = time.perf_counter() - started
    await ledger.billing.holds.resolve(request.hold_id, SETTLEMENTS * HOUR_MS)
    return 1000 * spent_s / SETTLEMENTS
