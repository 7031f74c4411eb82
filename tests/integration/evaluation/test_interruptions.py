"""Scorings whose service, child process or object store goes away in the middle."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from nats.js import JetStreamContext

from saucer.evaluation.scorer import scorings_total
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.ids import derived_id, new_id
from saucer.local.servers import NatsServer
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.world import Start, World
from tests.support.events import until
from tests.support.services import ServiceRunner, Tokens

CLAIM_S = 5.0
# Longer than any wait for an end.
LONG_CLAIM_S = 300.0


@pytest.fixture
async def start(run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, tmp_path: Path) -> Start:
    start = Start(run_service, tokens, jetstream, tmp_path)
    start.database_url = await run_service.new_database()
    return start


@asynccontextmanager
async def own_process(start: Start, nats: NatsServer, tokens: Tokens) -> AsyncIterator[asyncio.subprocess.Process]:
    """Evaluation in a process of its own, on the same database and store."""
    settings = {
        "LISTEN": "127.0.0.1:0",
        "DATABASE_URL": start.database_url,
        "NATS_URL": nats.uri,
        "PUBLIC_KEYS_FILE": tokens.public_keys_file,
        "OBJECT_STORE_URL": f"file://{start.store}",
        "SCORING_CLAIM_S": CLAIM_S,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "saucer.evaluation.main",
        env=os.environ | {f"SAUCER_{name}": str(value) for name, value in settings.items()},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def scoring_processes() -> dict[int, int]:
    """Every scoring's process that lives, with its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and b"saucer.evaluation.scoring_child" in (entry / "cmdline").read_bytes():
                lines = (entry / "status").read_text().splitlines()
                status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                if not status["State"].startswith("Z"):
                    found[int(entry.name)] = int(status["PPid"])
    return found


async def stopped_child_of(pid: int, *, other_than: int = 0) -> int:
    """Stopped in the middle, as soon as it is there; a kill still ends it."""

    async def found() -> int | None:
        children = (child for child, parent in scoring_processes().items() if parent == pid)
        return next((child for child in children if child != other_than), None)

    child = await until(found)
    os.kill(child, signal.SIGSTOP)
    return child


async def row(start: Start, model: training_pb2.Model) -> Any:
    connection = await asyncpg.connect(start.database_url)
    try:
        return await connection.fetchrow(
            "SELECT state, attempts, crashes, claim_token, error_message FROM evaluation WHERE model_id = $1",
            model.model_id,
        )
    finally:
        await connection.close()


async def check_scored_once(world: World, model: training_pb2.Model) -> None:
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED, told.error_message
    assert told.evaluation_id == derived_id("evaluation", model.model_id)
    info = await world.jetstream.stream_info("SAUCER", subjects_filter="saucer.evaluation.>")
    assert sum((info.state.subjects or {}).values()) == 1


async def test_a_scoring_whose_service_is_killed_is_finished_once_by_the_next(
    start: Start, nats: NatsServer, tokens: Tokens
) -> None:
    async with start() as world:
        model = await world.model()
        account_id = world.account_id
    async with own_process(start, nats, tokens) as first:
        await world.tell(model)
        child = await stopped_child_of(first.pid)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    with suppress(ProcessLookupError):  # unless it had not yet begun to follow its service
        os.kill(child, signal.SIGCONT)
    left = await row(start, model)
    assert (left["state"], left["attempts"]) == ("SCORING", 1)
    assert left["claim_token"] is not None, "it was killed in the middle"

    async def gone() -> bool:
        return child not in scoring_processes()

    assert await until(gone), "the child ends with its service"
    async with start(scoring_claim_s=CLAIM_S) as second:
        second.account_id = account_id
        await check_scored_once(second, model)
    assert (await row(start, model))["attempts"] == 2


async def test_a_scoring_whose_service_is_stopped_is_taken_up_at_once(start: Start) -> None:
    async with start(scoring_claim_s=LONG_CLAIM_S) as world:
        model = await world.model()
        await world.tell(model)
        await stopped_child_of(os.getpid())
    assert os.getpid() not in scoring_processes().values()
    left = await row(start, model)
    assert (left["state"], left["attempts"], left["claim_token"]) == ("SCORING", 0, None)
    async with start(scoring_claim_s=LONG_CLAIM_S) as again:
        again.account_id = world.account_id
        await check_scored_once(again, model)


async def test_a_scoring_whose_child_dies_once_is_done_again_and_so_is_the_next_model(start: Start) -> None:
    async with start() as world:
        model, other = await world.model(), await world.model()
        await world.tell(model)
        os.kill(await stopped_child_of(os.getpid()), signal.SIGKILL)
        await check_scored_once(world, model)
        assert (await row(start, model))["crashes"] == 1
        await world.tell(other)
        assert (await world.ended(other)).state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED


async def test_a_scoring_whose_child_dies_each_time_fails_with_a_sentence(start: Start) -> None:
    async with start() as world:
        model = await world.model()
        await world.tell(model)
        child = 0
        for _ in range(3):
            child = await stopped_child_of(os.getpid(), other_than=child)
            os.kill(child, signal.SIGKILL)
        told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert told.error_message == "Its scoring crashed 3 times."


async def test_a_scoring_that_takes_too_long_fails_with_a_sentence(start: Start) -> None:
    async with start(scoring_time_limit_s=0.05) as world:
        model = await world.model()
        await world.tell(model)
        told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert "took longer than" in told.error_message


async def test_a_scoring_that_needs_too_much_memory_fails_and_the_service_lives_on(start: Start) -> None:
    async with start(scoring_memory_bytes=512 * 1024**2) as world:
        model, other = await world.model(), await world.model()
        image = b'{"id":1,"width":1,"height":1}'
        large = b'{"annotations":[],"categories":[],"images":[' + (image + b",") * 4_000_000 + image + b"]}"
        model.manifest_sha256 = await world.objects.put(model.manifest_key, large)
        await world.tell(model)
        told = await world.ended(model)
        assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
        assert "bytes of memory" in told.error_message
        await world.tell(other)
        assert (await world.ended(other)).state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED


class Store:
    """The object store, taken away: where its folder was, there is a file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._aside = folder, folder.with_name("aside")

    def take_away(self) -> None:
        self._folder.rename(self._aside)
        self._folder.touch()

    def bring_back(self) -> None:
        self._folder.unlink()
        self._aside.rename(self._folder)


async def test_a_store_that_is_away_for_a_while_delays_a_scoring(start: Start) -> None:
    async with start() as world:
        model = await world.model()
        store = Store(start.store)
        store.take_away()
        await world.tell(model)

        async def tried() -> bool:
            left = await row(start, model)
            return left is not None and left["attempts"] == 1 and left["claim_token"] is None

        await until(tried)
        store.bring_back()
        await check_scored_once(world, model)


async def test_a_store_that_stays_away_ends_a_scoring_with_a_sentence(start: Start) -> None:
    async with start(scoring_attempts=2) as world:
        model = await world.model()
        store = Store(start.store)
        store.take_away()
        await world.tell(model)
        told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert "2 attempts" in told.error_message


async def test_one_that_killed_every_process_that_had_it_ends_with_a_sentence(start: Start) -> None:
    async with start(scoring_attempts=3) as world:
        model = await world.model()
    connection = await asyncpg.connect(start.database_url)
    # As three processes that were killed leave it.
    source = '{"manifest": {"key": "", "sha256": ""}, "test": {"key": "", "sha256": ""}, '
    source += '"validation": {"key": "", "sha256": ""}, "image_prefix": "", "classes": []}'
    await connection.execute(
        """
        INSERT INTO evaluation (evaluation_id, account_id, task_id, run_id, model_id, dataset_version_id, source, state,
                                attempts, retry_at, claim_token, claim_expires_at, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, 'SCORING', 3, '2026-01-01', $8, '2026-01-01', '2026-01-01')
        """,
        derived_id("evaluation", model.model_id),
        model.account_id,
        model.task_id,
        model.run_id,
        model.model_id,
        model.dataset_version_id,
        source,
        new_id(),
    )
    await connection.close()
    async with start(scoring_attempts=3) as again:
        again.account_id = world.account_id
        told = await again.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert "3 attempts" in told.error_message


async def test_who_lost_the_claim_during_a_pause_does_not_overwrite_what_the_other_stored(start: Start) -> None:
    lost = scorings_total.labels("claim_lost")._value
    before = lost.get()
    async with start(scoring_claim_s=60) as world:
        model = await world.model()
        await world.tell(model)
        child = await stopped_child_of(os.getpid())
        connection = await asyncpg.connect(start.database_url)
        # So long that this one does not notice by prolonging it meanwhile.
        await connection.execute(
            "UPDATE evaluation SET claim_token = $1, claim_expires_at = clock_timestamp() + interval '1 hour'", new_id()
        )
        os.kill(child, signal.SIGCONT)

        async def noticed() -> bool:
            return bool(lost.get() > before)

        await until(noticed)
        assert await world.objects.keys(f"system/{world.account_id}/evaluations") == []
        await connection.execute("UPDATE evaluation SET claim_expires_at = clock_timestamp()")
        await connection.close()
        await check_scored_once(world, model)


async def test_who_lost_the_claim_tells_nothing_and_the_other_finishes(start: Start) -> None:
    async with start(scoring_claim_s=CLAIM_S) as world:
        model = await world.model()
        await world.tell(model)
        await stopped_child_of(os.getpid())
        connection = await asyncpg.connect(start.database_url)
        # As another replica takes it, where this one could not prolong its claim in time.
        await connection.execute(
            "UPDATE evaluation SET claim_token = $1, claim_expires_at = clock_timestamp() + interval '1 second'",
            new_id(),
        )
        await connection.close()
        await check_scored_once(world, model)
