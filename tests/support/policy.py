"""The policy of training's queue, as its leases.py states it, as a pure function that tests hold the SQL against."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from saucer.lib.postgres import Connection
from saucer.training.domain import Run
from saucer.training.store import queue
from saucer.training.store.queue import AGEING
from saucer.training.store.runs import read_run


def choose(
    ready: Sequence[Run],
    busy: Mapping[str, int],
    now: datetime,
    weights: Mapping[str, int] | None = None,
    limits: Mapping[str, int] | None = None,
    granted: Mapping[str, datetime] | None = None,
) -> str | None:
    """The run to lease next, of those that may be leased to the worker that asks.

    Args:
        granted: when each account got a run of this region and spec last.
    """
    weights, limits, granted = weights or {}, limits or {}, granted or {}
    accounts = {run.request.account_id for run in ready}
    allowed = [account_id for account_id in accounts if busy.get(account_id, 0) < limits.get(account_id, 10**9)]
    if not allowed:
        return None

    def place(account_id: str) -> tuple[float, datetime, str]:
        since = min(run.queued_at for run in ready if run.request.account_id == account_id)
        since = max(since, granted.get(account_id, since))
        return busy.get(account_id, 0) / weights.get(account_id, 1) - (now - since) / AGEING, since, account_id

    first = min(allowed, key=place)
    own = [run for run in ready if run.request.account_id == first]
    chosen = min(own, key=lambda run: (-run.request.priority, run.started_at is None, run.queued_at, run.run_id))
    return chosen.run_id


@dataclass
class Choices:
    """How many were checked, and those that were others than the policy's.

    To be asserted on by the test: what is raised in a call of a worker's is only repeated by it.
    """

    number: int = 0
    wrong: list[str] = field(default_factory=list)


def check_each_choice(monkeypatch: pytest.MonkeyPatch) -> Choices:
    """From now on every choice of training, in this process, is compared with choose(); accounts are all alike."""
    choices, next_queued = Choices(), queue.next_queued

    async def checked(connection: Connection, region_id: str, spec_id: str, now: datetime) -> Run | None:
        # Both statements are to see the same runs: until the transaction's end nobody else writes one.
        await connection.execute("LOCK TABLE run IN SHARE MODE")
        rows = await connection.fetch("SELECT * FROM run WHERE state <> 'ENDED'")
        runs = [read_run(row) for row in rows]
        busy = Counter(run.request.account_id for run in runs if run.state != "QUEUED")
        ready = [
            run
            for run in runs
            if run.state == "QUEUED"
            and (run.request.region_id, run.request.spec_id) == (region_id, spec_id)
            and (run.ready_at is None or run.ready_at <= now)
        ]
        grants = await connection.fetch(
            "SELECT * FROM last_grant WHERE (region_id, spec_id) = ($1, $2)", region_id, spec_id
        )
        granted = {str(row["account_id"]): row["granted_at"] for row in grants}
        chosen = await next_queued(connection, region_id, spec_id, now)
        found, expected = chosen.run_id if chosen else None, choose(ready, busy, now, granted=granted)
        if found != expected:
            choices.wrong.append(f"{found} instead of {expected}, of {len(ready)} that waited in {region_id}")
        choices.number += chosen is not None
        return chosen

    monkeypatch.setattr(queue, "next_queued", checked)
    return choices
