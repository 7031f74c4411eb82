"""A week of events: doubled, shuffled across resources, delayed, some lost and sent again, they give the same bill."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message

from saucer.billing.consumers import handlers
from saucer.billing.domain import HoldRequest, HoldState, WorkKind
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.errors import NotFoundError
from saucer.publishing.v1 import events_pb2 as publishing_events
from saucer.task.v1 import events_pb2 as task_events
from saucer.training.v1 import events_pb2 as training_events
from tests.support.ledger import HOLD_MICROS, PRICE_MICROS, Ledger, request_of

WORKS, STARTS = 12, 2
WEEK_S = 7 * 24 * 3600
EVENTS_EACH = 14
# Of the events, how many are lost at first; and among how many of the others they, and the second copies, come late.
LOST_SHARE = 0.1
LATE_EVENTS = 40

Handle = Callable[[CloudEvent, Message], Awaitable[None]]


@dataclass(frozen=True)
class Start:
    """One start of a work, with the counters that its owner tells of one after the other; the last is its end."""

    request: HoldRequest
    counters_ms: Sequence[int]

    @property
    def charge_micros(self) -> int:
        return PRICE_MICROS * self.request.count * (self.counters_ms[-1] // 1000) // 3600

    def events(self) -> list[Message]:
        if self.request.work_kind is WorkKind.TASK:
            return self._of_task()
        return self._of_deployment()

    def _of_task(self) -> list[Message]:
        request = self.request
        queued = task_events.TaskQueued()
        ended = task_events.TaskEnded()
        for message in (queued, ended):
            message.task.task_id, message.task.account_id = request.work_id, request.account_id
            message.task.hold_id, message.task.start_number = request.hold_id, request.start_number
            message.task.form.region_id, message.task.form.spec_id = request.region_id, request.spec_id
            message.task.form.count, message.task.currency = request.count, "EUR"
        ended.task.charged_ms = self.counters_ms[-1]
        kinds: list[Any] = [training_events.RunProgressed] * len(self.counters_ms)
        kinds[0], kinds[len(kinds) // 2], kinds[-1] = (
            training_events.RunStarted,
            training_events.RunInterrupted,
            training_events.RunEnded,
        )
        told: list[Message] = [queued]
        for kind, counter_ms in zip(kinds, self.counters_ms, strict=True):
            message = kind()
            message.run.hold_id, message.run.charged_ms = request.hold_id, counter_ms
            told.append(message)
        return [*told, ended]

    def _of_deployment(self) -> list[Message]:
        request = self.request
        kinds: list[Any] = [publishing_events.DeploymentProgressed] * len(self.counters_ms)
        kinds[0], kinds[len(kinds) // 2], kinds[-1] = (
            publishing_events.DeploymentActivated,
            publishing_events.DeploymentDegraded,
            publishing_events.DeploymentEnded,
        )
        told = []
        for kind, counter_ms in zip((publishing_events.DeploymentQueued, *kinds), (0, *self.counters_ms), strict=True):
            message = kind()
            deployment = message.deployment
            deployment.deployment_id, deployment.account_id = request.work_id, request.account_id
            deployment.hold_id, deployment.start_number = request.hold_id, request.start_number
            deployment.region_id, deployment.spec_id = request.region_id, request.spec_id
            deployment.replicas, deployment.currency = request.count, "EUR"
            deployment.charged_ms = counter_ms
            told.append(message)
        return told


def works_of(account_id: str, rng: random.Random) -> list[list[Start]]:
    """Each with its starts, one after the other; all starts of a work together are at most a week."""
    works = []
    for number in range(WORKS):
        first = request_of(account_id, count=1 + number % 3)
        kind = WorkKind.TASK if number % 2 else WorkKind.DEPLOYMENT
        starts = []
        for start_number in range(1, STARTS + 1):
            most_ms = rng.randint(1, 1000 * WEEK_S // STARTS)
            counters = sorted(rng.randint(0, most_ms) for _ in range(EVENTS_EACH))
            request = request_of(account_id, work_id=first.work_id, start_number=start_number, count=first.count)
            starts.append(Start(HoldRequest(**{**vars(request), "work_kind": kind}), counters))
        works.append(starts)
    return works


def in_order(works: Sequence[Sequence[Start]]) -> list[tuple[Start, Message]]:
    return [(start, event) for starts in works for start in starts for event in start.events()]


def as_it_may_come(works: Sequence[Sequence[Start]], rng: random.Random) -> list[tuple[Start, Message]]:
    """Each twice, at least. Of one work in order, if nothing is lost: a stream keeps it. The end of a start is not lost
    before the next start of its work is told of: then the policy (8) says what it costs."""
    queues = [in_order([starts]) for starts in works]
    delivered: list[tuple[Start, Message]] = []
    late: list[tuple[int, tuple[Start, Message]]] = []
    while any(queues) or late:
        due = [entry for entry in late if entry[0] <= len(delivered) or not any(queues)]
        if due:
            entry = rng.choice(due)
            late.remove(entry)
            delivered.append(entry[1])
            continue
        queue = rng.choice([queue for queue in queues if queue])
        start, event = queue.pop(0)
        ends = event.DESCRIPTOR.name in {"RunEnded", "TaskEnded", "DeploymentEnded"}
        if ends or rng.random() > LOST_SHARE:
            delivered.append((start, event))
        else:
            late.append((len(delivered) + rng.randint(1, LATE_EVENTS), (start, event)))
        late.append((len(delivered) + rng.randint(1, LATE_EVENTS), (start, event)))
    return delivered


async def bill(ledger: Ledger, works: Sequence[Sequence[Start]], events: Sequence[tuple[Start, Message]]) -> list[int]:
    """What each start pays, by what billing's own handlers make of the events, through two replicas."""
    replicas = [
        {handles.message: handles.handler for handles in handlers(billing)}
        for billing in (ledger.billing, ledger.second)
    ]
    asked: set[str] = set()
    for number, (start, event) in enumerate(events):
        # A start is asked for before anything is told of it.
        if start.request.hold_id not in asked:
            asked.add(start.request.hold_id)
            assert (await ledger.billing.holds.create(start.request)).state is HoldState.GRANTED
        ledger.clock.advance(timedelta(seconds=WEEK_S / len(events)))
        handle: Handle = replicas[number % 2][type(event)]
        await handle(None, event)  # type: ignore[arg-type]  # no handler of billing looks at the envelope
    holds = [await ledger.hold(start.request) for starts in works for start in starts]
    assert {hold.state for hold in holds} == {HoldState.RESOLVED}
    assert all(hold.lost_micros == 0 for hold in holds)
    return [hold.settled_micros + hold.posted_micros for hold in holds]


@pytest.mark.parametrize("seed", range(3))
async def test_on_a_covered_balance_a_week_of_events_gives_the_same_bill_however_it_comes(
    ledger: Ledger, seed: int
) -> None:
    bills = []
    for comes in (in_order, lambda works: as_it_may_come(works, random.Random(seed))):
        account_id = await ledger.account(10_000 * HOLD_MICROS)
        works = works_of(account_id, random.Random(seed))
        events = comes(works)
        bills.append(await bill(ledger, works, events))
        assert bills[-1] == [start.charge_micros for starts in works for start in starts]
        paid = 10_000 * HOLD_MICROS - sum(bills[-1])
        assert await ledger.balance(account_id) == (paid, 0)
    assert bills[0] == bills[1]


async def test_an_event_of_a_hold_that_billing_does_not_have_is_not_taken_as_done(ledger: Ledger) -> None:
    (starts,) = works_of(await ledger.account(0), random.Random(0))[:1]
    handle = {handles.message: handles.handler for handles in handlers(ledger.billing)}
    for event in starts[0].events()[:-1]:
        with pytest.raises(NotFoundError):
            await handle[type(event)](None, event)  # type: ignore[arg-type]
