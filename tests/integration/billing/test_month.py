"""A month of a busy platform, all of money's services in one process with one clock.

Afterwards every statement is computed once more from nothing but the events of the stream. `make test` plays some
hundreds of jobs, `make soak` thousands.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random, SystemRandom
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from nats.js import JetStreamContext

from saucer.billing.domain import HoldState, Region, Spec, Statement
from saucer.billing.ledger import TransferKind
from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.auth import Role
from saucer.lib.cloudevent import from_json
from saucer.lib.errors import DomainError, FailedPreconditionError
from saucer.lib.ids import new_id
from saucer.local.servers import NatsServer
from saucer.publishing.domain import DeploymentState, Evaluation, Model, Parity, Triton
from saucer.publishing.domain import Form as DeploymentForm
from saucer.publishing.instances import InstanceState
from saucer.publishing.v1 import events_pb2 as publishing_events
from saucer.task.domain import Form as TaskForm
from saucer.task.v1 import events_pb2 as task_events
from saucer.training.domain import Beat, EndReason, Progress, Run, RunStage
from saucer.training.v1 import events_pb2 as training_events
from tests.support.ledger import PRICE_MICROS, REGION, SPEC, START, correction
from tests.support.platform import Data, Platform, lengthen, platform
from tests.support.servers import NewDatabase
from tests.support.services import Tokens

STEP = timedelta(hours=2)
STEPS = 31 * 12
TIME_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "America/St_Johns")
POOR_MICROS, RICH_MICROS = 30 * PRICE_MICROS, 10_000 * PRICE_MICROS
WORKERS, ROOM = 24, 12
OTHER_SPEC = "cpu-8"
# The reason by which a correction is known for one.
REFUND = "a refund"


@pytest.fixture
async def month(
    new_database: NewDatabase,
    nats: NatsServer,
    jetstream: JetStreamContext,
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator["Month"]:
    lengthen(monkeypatch, STEP)
    data = Data()
    tritons = [Triton(name, f"{name}:1", f"/{name}", REGION, SPEC, ROOM, 1) for name in ("first", "second")]
    async with platform(new_database, nats.uri, tmp_path, tokens.file(Role.SERVICE), data, *tritons) as services:
        yield Month(services, data, Random())


@dataclass
class Leased:
    """What a worker knows of its run."""

    run: Run
    token: str
    steps: int
    sequence: int = 0


@dataclass
class Month:
    """Everything that happens on a platform, as likely as the test says."""

    services: Platform
    data: Data
    chance: Random
    accounts: list[str] = field(default_factory=list)
    poor: list[str] = field(default_factory=list)
    suspended: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    leased: list[Leased] = field(default_factory=list)
    # What came into each account and left it by other ways than work.
    given: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    started: int = 0

    async def open(self) -> None:
        billing = self.services.billing
        await billing.offers.create_region(Region(REGION, "Here"), correction())
        for spec_id, times in ((SPEC, 1), (OTHER_SPEC, 3)):
            await billing.offers.create_spec(
                Spec(REGION, spec_id, spec_id, 0, 2, 4, times * PRICE_MICROS + 7, "EUR"), correction()
            )
        for number, time_zone in enumerate(2 * TIME_ZONES):
            account_id = new_id()
            await billing.accounts.create(account_id, f"A{number}", "EUR", time_zone, correction())
            self.accounts.append(account_id)
            if number >= len(TIME_ZONES):
                self.poor.append(account_id)
            await self._top_up(account_id, POOR_MICROS if account_id in self.poor else RICH_MICROS)
            self.models[account_id] = await self._model(account_id)
        # Groups that end in the month's middle, at its end, and after it.
        for account_id, days in zip(self.accounts[:3], (15, 30, 60), strict=True):
            end = START + timedelta(days=days)
            group = await billing.groups.create(account_id, "G", REGION, SPEC, 2, None, end, correction())
            self.groups[account_id] = group.group_id
        await billing.budgets.set(self.accounts[3], None, 40 * PRICE_MICROS)

    async def _model(self, account_id: str) -> str:
        model_id = new_id()
        model = Model(model_id, account_id, ("cup",), {}, "m", "0" * 64, "i")
        await self.services.deployments.meet_model(model)
        evaluation = Evaluation(new_id(), model_id, {}, None)
        await self.services.deployments.meet_evaluation(evaluation, START)
        return model_id

    # What people do

    async def people(self, starts: float) -> None:
        for _ in range(int(starts) + (self.chance.random() < starts % 1)):
            await self._attempt(self._start())
        for chance, act in (
            (0.1, self._top_up_somebody),
            (0.01, self._change_the_price),
            (0.01, self._adjust),
            (0.01, self._refund),
            (0.01, self._suspend_or_resume),
            (0.03, self._stop_a_task),
            (0.05, self._stop_a_deployment),
            (0.05, self._restart_a_task),
        ):
            if self.chance.random() < chance:
                await self._attempt(act())

    async def _attempt(self, act: Any) -> None:
        try:
            await act
        except DomainError as error:
            self.seen[error.reason] += 1

    async def _start(self) -> None:
        self.started += 1
        account_id = self.chance.choice(self.accounts)
        mode, group_id = "POSTPAID", ""
        if account_id in self.groups and self.chance.random() < 0.5:
            mode, group_id = "PREPAID", self.groups[account_id]
        budget = self.chance.choice((0, 0, 0, 3 * PRICE_MICROS))
        if self.chance.random() < 0.15:
            hours = self.chance.choice((None, 5, 48))
            form = DeploymentForm(
                f"d{self.started}", self.models[account_id], REGION, SPEC, self.chance.randint(1, 2), mode,
                hours * 3_600_000 if hours else None, (), group_id, budget,
            )  # fmt: skip
            await self.services.deployments.starts.create(new_id(), account_id, new_id(), form)
            return
        version = new_id()
        self.data.owners[version] = account_id
        spec = SPEC if group_id else self.chance.choice((SPEC, OTHER_SPEC))
        task = TaskForm(
            f"t{self.started}", "cup-and-plate", "", (), version, "", None, None, None, None, None, None, None, REGION,
            spec, self.chance.randint(1, 2), mode, "", 0, group_id, budget,
        )  # fmt: skip
        await self.services.tasks.starts.create(new_id(), account_id, new_id(), task)

    async def _top_up(self, account_id: str, amount: int) -> None:
        await self.services.billing.accounts.top_up(account_id, new_id(), amount)
        self.given[account_id] += amount

    async def _top_up_somebody(self) -> None:
        await self._top_up(self.chance.choice(self.poor), self.chance.randint(1, POOR_MICROS))

    async def _change_the_price(self) -> None:
        price = self.chance.randint(PRICE_MICROS // 2, 2 * PRICE_MICROS)
        await self.services.billing.offers.set_price(REGION, SPEC, price, None, correction())

    async def _adjust(self) -> None:
        account_id, amount = self.chance.choice(self.accounts), self.chance.randint(-PRICE_MICROS, PRICE_MICROS)
        if amount:
            await self.services.billing.accounts.adjust(account_id, amount, correction())
            self.given[account_id] += amount

    async def _refund(self) -> None:
        account_id = self.chance.choice(self.accounts)
        for statement in await self.statements(account_id):
            paid = statement.hold.settled_micros + statement.hold.posted_micros
            if statement.hold.state is HoldState.RESOLVED and paid:
                amount = self.chance.randint(1, paid)
                await self.services.billing.accounts.refund(statement.hold.hold_id, amount, correction(REFUND))
                self.given[account_id] += amount
                return

    async def _suspend_or_resume(self) -> None:
        if self.suspended:
            await self.services.billing.accounts.resume(self.suspended.pop(), correction())
        else:
            self.suspended.append(self.chance.choice(self.poor))
            await self.services.billing.accounts.suspend(self.suspended[-1], correction())

    async def _some_task(self) -> str:
        listed = await self.services.tasks.list_tasks(
            self.chance.choice(self.accounts), states=[], after=None, limit=20
        )
        return self.chance.choice([task.task_id for task in listed] or [new_id()])

    async def _stop_a_task(self) -> None:
        await self.services.tasks.stop(new_id(), await self._some_task())

    async def _restart_a_task(self) -> None:
        task_id = await self._some_task()
        await self.services.tasks.starts.restart(new_id(), task_id, from_scratch=False, max_duration_ms=None)

    async def _stop_a_deployment(self) -> None:
        for deployment in await self.services.deployments.serving.placed():
            await self.services.deployments.stop(new_id(), deployment.deployment_id)
            return

    # What machines do

    async def workers(self) -> None:
        for spec_id in (SPEC, OTHER_SPEC):
            while len(self.leased) < WORKERS:
                found = await self.services.training.leases.lease_run(new_id(), "w", REGION, spec_id, wait_s=0)
                if found is None:
                    break
                self.leased.append(Leased(*found, steps=self.chance.randint(1, 6)))
        still = []
        for leased in self.leased:
            if self.chance.random() < 0.02:
                self.seen["a worker is killed"] += 1
                continue
            if await self._work(leased):
                still.append(leased)
        self.leased = still

    async def _work(self, leased: Leased) -> bool:
        """A beat, or the end. Whether the worker has the run still."""
        leased.sequence += 1
        progress = Progress(RunStage.TRAINING, leased.sequence, 100, elapsed_ms=0)
        run_id, attempts = leased.run.run_id, self.services.training.attempts
        try:
            leased.run = await attempts.heartbeat(run_id, leased.token, Beat(leased.sequence, progress), [], [])
            if leased.run.must_stop or leased.sequence >= leased.steps:
                await attempts.finish_run(
                    new_id(),
                    run_id,
                    leased.token,
                    leased.run.stop_reason or EndReason.COMPLETED,
                    error_message="",
                    user_error=False,
                    released=False,
                    elapsed_ms=0,
                    best_accuracy=None,
                    files=[],
                )
                return False
        except FailedPreconditionError as error:
            self.seen[error.reason] += 1
            return False
        return True

    async def triton(self) -> None:
        serving = self.services.deployments.serving
        await serving.take_lease("one")
        wanted, _ = await serving.wanted()
        for deployment in wanted:
            if len(deployment.instances) < deployment.form.replicas:
                await serving.place(deployment, "one", ())
            for instance in deployment.instances:
                if deployment.state is DeploymentState.STOPPING:
                    await serving.unloaded(deployment, instance)
                elif instance.state is InstanceState.LOADING:
                    await serving.activate(deployment, instance, Parity(True, 1, 1, 1, ()), "p")
                elif instance.state is InstanceState.LOST:
                    await serving.recover(deployment, instance)
                elif self.chance.random() < 0.02:
                    await serving.lose(deployment, instance, "it does not answer")
                else:
                    await serving.count(deployment, instance, lambda: timedelta.max)

    async def accidents(self) -> None:
        """Now and then a service is killed in the midst of its events, and starts again."""
        if self.chance.random() < 0.01:
            part = self.chance.choice(self.services.parts)
            self.seen[f"{part.name} is killed"] += 1
            await part.kill()
            part.start()

    async def pass_(self, starts: float, *, settle: bool) -> None:
        """One step."""
        self.services.clock.advance(STEP)
        if starts:
            await self.people(starts)
        await self.workers()
        await self.triton()
        await self.accidents()
        await self.services.sweep()
        if settle:
            await self.services.settle()

    async def close(self) -> None:
        """Nothing new; what runs comes to its end."""
        for _ in range(30):
            for deployment in await self.services.deployments.serving.placed():
                await self.services.deployments.stop(new_id(), deployment.deployment_id)
            await self.pass_(0, settle=True)

    async def statements(self, account_id: str) -> list[Statement]:
        statements, more = await self.services.billing.statements.list(
            account_id, work_id=None, after=None, limit=100_000
        )
        assert not more
        return statements


@dataclass
class Told:
    """A start, as the events told it."""

    hold: billing_pb2.Hold
    charged_ms: int = 0


COUNTERS = (
    training_events.RunStarted,
    training_events.RunProgressed,
    training_events.RunInterrupted,
    training_events.RunEnded,
)
SERVING = (
    publishing_events.DeploymentActivated,
    publishing_events.DeploymentProgressed,
    publishing_events.DeploymentDegraded,
    publishing_events.DeploymentEnded,
)


async def read(services: Platform) -> dict[str, Told]:
    """Each granted start with the greatest counter that its owner told: all that a bill follows from."""
    told: dict[str, Told] = {}
    counters: Counter[str] = Counter()

    def count(hold_id: str, charged_ms: int) -> None:
        counters[hold_id] = max(counters[hold_id], charged_ms)

    kinds: dict[str, Any] = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (billing_events.HoldGranted, task_events.TaskEnded, *COUNTERS, *SERVING)
    }
    async for event in services.events():
        if event.type not in kinds:
            continue
        message = from_json(event.data, kinds[event.type]())
        if event.type.endswith("HoldGranted"):
            told[message.hold.hold_id] = Told(message.hold)
        elif event.type.endswith("TaskEnded"):
            count(message.task.hold_id, message.task.charged_ms)
        elif event.type.startswith("saucer.training."):
            count(message.run.hold_id, message.run.charged_ms)
        else:
            count(message.deployment.hold_id, message.deployment.charged_ms)
    return {hold_id: replace(one, charged_ms=counters[hold_id]) for hold_id, one in told.items()}


def check_statement(statement: Statement, told: Told | None) -> None:
    """Line by line, against what the events say."""
    hold, sums = statement.hold, Counter[TransferKind]()
    for line in statement.transfers:
        sums[line.kind] += line.amount_micros
    if told is None:
        # One may still wait for capacity of a group that has not ended.
        assert hold.state in (HoldState.REFUSED, HoldState.BURIED, HoldState.WAITING), hold
        assert not statement.transfers
        return
    price, count = told.hold.price_per_hour_micros, told.hold.count
    charge = price * count * (told.charged_ms // 1000) // 3600
    paid = sums[TransferKind.SETTLEMENT] + sums[TransferKind.POSTING]
    assert paid + sums[TransferKind.LOSS] == charge
    # One whose use was heard of too late is given back whole, and what its work did meanwhile is the platform's loss.
    assert hold.state is not HoldState.EXPIRED or not paid
    assert sums[TransferKind.HOLD] == 2 * price * count
    assert (
        sums[TransferKind.HOLD] == sums[TransferKind.POSTING] + sums[TransferKind.RELEASE] + sums[TransferKind.EXPIRY]
    )
    # What waited for capacity of a group may have got it only now, and costs nothing.
    assert hold.state in (HoldState.RESOLVED, HoldState.EXPIRED) or hold.group_id is not None


@dataclass(frozen=True)
class Moved:
    """What an event says was booked: its time, the change of each balance, what was charged, and the lines of it."""

    time: datetime
    available: int
    frozen: int
    charged: int
    lines: Counter[TransferKind]


async def moves(services: Platform) -> dict[str, list[Moved]]:
    """By account, in order, from billing's events alone."""
    moved: dict[str, list[Moved]] = defaultdict(list)
    available: Counter[str] = Counter()
    settled: Counter[str] = Counter()
    # As they were last said to have ended: a greater counter that comes after the end is said by the same event again.
    ended: defaultdict[str, billing_pb2.Hold] = defaultdict(billing_pb2.Hold)
    kinds: dict[str, Any] = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (
            billing_events.AccountToppedUp,
            billing_events.AccountCorrected,
            billing_events.HoldGranted,
            billing_events.ChargeSettled,
            billing_events.HoldResolved,
        )
    }
    async for event in services.events():
        if event.type not in kinds:
            continue
        message = from_json(event.data, kinds[event.type]())
        hold: Any = getattr(message, "hold", None)
        match event.type.rpartition(".")[2]:
            case "AccountToppedUp":
                change = Moved(event.time, message.top_up.amount_micros, 0, 0, Counter([TransferKind.TOP_UP]))
            case "AccountCorrected":
                # It says what is available since; nothing, of a suspension.
                given = message.account.available_micros - available[event.account_id]
                refunded = given if message.reason == REFUND else 0
                kind = TransferKind.REFUND if refunded else TransferKind.CREDIT if given > 0 else TransferKind.DEBIT
                change = Moved(event.time, given, 0, -refunded, Counter([kind] if given else []))
            case "HoldGranted":
                held = hold.amount_micros
                change = Moved(event.time, -held, held, 0, Counter([TransferKind.HOLD] if held else []))
            case "ChargeSettled":
                taken = message.amount_micros
                settled[hold.hold_id] += taken
                change = Moved(event.time, -taken, 0, taken, Counter([TransferKind.SETTLEMENT]))
            case _:
                before = ended[hold.hold_id]
                ended[hold.hold_id] = hold
                taken = hold.settled_micros - settled[hold.hold_id]
                settled[hold.hold_id] = hold.settled_micros
                posted = hold.posted_micros - before.posted_micros
                released = hold.released_micros - before.released_micros
                expired = hold.state == billing_pb2.HOLD_STATE_EXPIRED
                amounts = {
                    TransferKind.POSTING: posted,
                    TransferKind.SETTLEMENT: taken,
                    TransferKind.LOSS: hold.lost_micros - before.lost_micros,
                    TransferKind.EXPIRY if expired else TransferKind.RELEASE: released,
                }
                lines = Counter(kind for kind, amount in amounts.items() if amount)
                change = Moved(event.time, released - taken, -posted - released, posted + taken, lines)
        moved[event.account_id].append(change)
        available[event.account_id] += change.available
    return moved


async def check_months(month: Month, account_id: str, moved: Sequence[Moved]) -> None:
    """Each monthly statement's balances, sum and kinds of lines are those that follow from the events."""
    billing = month.services.billing
    zone = ZoneInfo((await billing.accounts.get(account_id)).time_zone)
    of_month: dict[str, list[Moved]] = defaultdict(list)
    for change in moved:
        of_month[f"{change.time.astimezone(zone):%Y-%m}"].append(change)
    available = frozen = 0
    for name in sorted(of_month):
        told = await billing.statements.of_month(account_id, name, after_version=None, limit=1_000_000)
        assert (told.opening_available_micros, told.opening_frozen_micros) == (available, frozen), name
        available += sum(change.available for change in of_month[name])
        frozen += sum(change.frozen for change in of_month[name])
        assert (told.closing_available_micros, told.closing_frozen_micros) == (available, frozen), name
        assert told.charged_micros == sum(change.charged for change in of_month[name]), name
        lines = sum((change.lines for change in of_month[name]), Counter[TransferKind]())
        assert Counter(line.kind for line in told.transfers) == lines, name


async def check_account(month: Month, account_id: str, statements: list[Statement]) -> None:
    """The balance follows from what was given and what was charged; the months' sums from the lines."""
    billing = month.services.billing
    account = await billing.accounts.get(account_id)
    charged = sum(one.hold.settled_micros + one.hold.posted_micros for one in statements)
    assert (account.available_micros, account.frozen_micros) == (month.given[account_id] - charged, 0)
    by_month: Counter[str] = Counter()
    for statement in statements:
        for line in statement.transfers:
            name = f"{line.created_at.astimezone(ZoneInfo(account.time_zone)):%Y-%m}"
            if line.kind in (TransferKind.SETTLEMENT, TransferKind.POSTING):
                by_month[name] += line.amount_micros
            elif line.kind is TransferKind.REFUND:
                by_month[name] -= line.amount_micros
    for name, micros in by_month.items():
        found = await billing.statements.of_month(account_id, name, after_version=None, limit=1)
        assert found.charged_micros == micros, name


async def play(month: Month, *, jobs: int, settle_every: int, seed: int) -> Counter[str]:
    month.chance.seed(seed)
    print(f"seed {seed}")
    await month.open()
    for step in range(STEPS):
        await month.pass_(jobs / STEPS, settle=step % settle_every == 0)
    await month.close()
    assert await month.services.dead_events() == 0
    audit = await month.services.billing.statements.audit()
    assert (audit.findings, audit.ledger_sum_micros, audit.frozen_micros) == ((), 0, 0)
    told, states, losses = await read(month.services), Counter[str](), defaultdict(int)
    moved = await moves(month.services)
    for account_id in month.accounts:
        statements = await month.statements(account_id)
        for statement in statements:
            check_statement(statement, told.pop(statement.hold.hold_id, None))
            states[statement.hold.state] += 1
            states[statement.hold.charge_status] += 1
            states[statement.hold.refusal or ""] += 1
        await check_account(month, account_id, statements)
        # What an expired hold lost is that billing heard too late of its use.
        used = [one.hold for one in statements if one.hold.state is not HoldState.EXPIRED]
        losses[account_id] = sum(hold.lost_micros for hold in used)
        await check_months(month, account_id, moved[account_id])
    assert not told
    # Whoever can pay does: a loss is only ever of an account that ran out.
    assert all(account_id in month.poor for account_id, micros in losses.items() if micros)
    return states + month.seen


async def test_a_months_statements_are_what_the_events_say(month: Month) -> None:
    seen = await play(month, jobs=250, settle_every=4, seed=SystemRandom().randrange(10**6))
    assert seen["RESOLVED"] > 100
    assert seen["STOPPED_FOR_ARREARS"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_thousands_of_jobs_in_a_month(month: Month) -> None:
    seen = await play(month, jobs=4000, settle_every=2, seed=SystemRandom().randrange(10**6))
    print(dict(seen))
    assert seen["RESOLVED"] > 1000
    for reason in (
        "REFUSED",
        "INSUFFICIENT_BALANCE",
        "ACCOUNT_SUSPENDED",
        "GROUP_ENDED",
        "BUDGET_REACHED",
        "BURIED",
        "STOPPED_FOR_ARREARS",
    ):
        assert seen[reason], reason
