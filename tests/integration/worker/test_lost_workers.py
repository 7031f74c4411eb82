"""Workers that hang, are cut off, lack memory or disk: another goes on, and what a zombie says is not heard."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from saucer.lib.ids import new_id
from saucer.training.charging import LEASE_MS
from tests.support.crew import Crew, kill
from tests.support.disk import full, own_disk
from tests.support.engine import read_journal
from tests.support.events import until
from tests.support.training import Start
from tests.support.wire import Wire

# 10 s of the engine's work; faults come after the first checkpoint.
ITERATIONS, BEGUN = 200, 15
DISK_BYTES = 256 * 2**20


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def begun(crew: Crew, starts: list[Start]) -> dict[str, Start]:
    """By worker, once each has one with a checkpoint."""
    rows = [await crew.run(start) for start in starts if await crew.exists(start)]
    if len(rows) < len(starts) or any(row["iteration"] < BEGUN or not row["checkpoint_key"] for row in rows):
        return {}
    return {row["worker_id"]: start for row, start in zip(rows, starts, strict=True)}


async def test_a_hung_and_a_cut_off_worker_and_one_without_memory_lose_their_runs_to_another(crew: Crew) -> None:
    account_id = new_id()
    async with Wire(crew.replicas[0].address).laid() as wire:
        workers = {
            name: await crew.worker(name, "a", address=wire.address if name == "cut" else "")
            for name in ("hung", "cut", "oom")
        }
        try:
            starts = [await crew.queue(account_id, iterations=ITERATIONS, region_id="a") for _ in workers]
            of_worker = await until(lambda: begun(crew, starts), timeout_s=60)
            workers["hung"].send_signal(signal.SIGSTOP)
            wire.cut()
            os.kill(child_of(workers["oom"].pid), signal.SIGKILL)  # as the kernel does it
            workers["spare"] = await crew.worker("spare", "a", 1)
            await until(lambda: crew.ended(len(starts)), timeout_s=90)
            for name, start in of_worker.items():
                row = await crew.run(start)
                assert (row["end_reason"], row["lost_attempts"]) == ("COMPLETED", 1), name
                prefix = f"system/{account_id}/runs/{start.run_id}/attempt-{row['attempt']}/"
                files = await crew.database.fetchval("SELECT files FROM model WHERE run_id = $1", start.run_id)
                assert files.count(prefix) == 4, "the files of the attempt that ended it, and of no other"
                wall_ms = (row["ended_at"] - row["started_at"]).total_seconds() * 1000
                gap_ms = 0 if name == "oom" else LEASE_MS - 1000
                assert row["charged_ms"] <= wall_ms - gap_ms, "the gap was charged"
            message = "SELECT line FROM log_line WHERE run_id = $1 AND line LIKE '%out of memory%'"
            assert "smaller batch_size" in await crew.database.fetchval(message, of_worker["oom"].run_id)
            tried = (crew.journal / "trials").read_text().split()
            assert tried.count(str(workers["oom"].pid)) == 1, "its next child was told what the first has found"

            before = {name: await crew.run(start) for name, start in of_worker.items()}
            workers["hung"].send_signal(signal.SIGCONT)
            wire.mend()
            for name in ("oom", "spare"):
                await kill(workers[name])
            later: list[Start] = []

            async def both_are_back() -> bool:
                """Each has done one of the runs that are queued now, a new one when the last has ended."""
                if not await crew.ended(len(starts) + len(later)):
                    return False
                done_by = {(await crew.run(start))["worker_id"] for start in later}
                if done_by != {"hung", "cut"}:
                    later.append(await crew.queue(account_id, iterations=20, region_id="a"))
                return done_by == {"hung", "cut"}

            await until(both_are_back, timeout_s=120)
            for name, start in of_worker.items():
                assert await crew.run(start) == before[name], "what a zombie says changes nothing"
                read_journal(crew.journal, start.run_id)
        finally:
            for worker in workers.values():
                await kill(worker)


async def test_a_worker_whose_disk_is_full_leaves_its_run_to_another_and_takes_none_until_there_is_room(
    crew: Crew,
) -> None:
    account_id = new_id()
    with own_disk(crew.folder / "small", DISK_BYTES) as disk:
        if not disk.is_mount():
            pytest.skip("only root, with the right to mount, can make a small disk")
        workers = [await crew.worker("small", "a")]
        try:
            start = await crew.queue(account_id, iterations=ITERATIONS, region_id="a")
            await until(lambda: begun(crew, [start]), timeout_s=60)
            with full(disk, DISK_BYTES):
                workers.append(await crew.worker("other", "a"))
                await until(lambda: crew.ended(1), timeout_s=60)
                row = await crew.run(start)
                assert (row["end_reason"], row["worker_id"], row["lost_attempts"]) == ("COMPLETED", "other", 1)
                await kill(workers[1])
                waiting = await crew.queue(account_id, iterations=20, region_id="a")
                await until(lambda: crew.exists(waiting))
                await asyncio.sleep(3)
                assert (await crew.run(waiting))["attempt"] == 0
            await until(lambda: crew.ended(2), timeout_s=30)
            assert (await crew.run(waiting))["worker_id"] == "small"
        finally:
            for worker in workers:
                await kill(worker)
