"""Makes the Tritons have what the database wants: a loop that compares the two and acts on what differs.

1. One replica acts, elected by a lease row; one that cannot prolong its lease ends what it does before the lease does.
2. Each round looks at every deployment anew, and at most one action runs on each name in Triton; every action can be
   repeated from its beginning, so a crash needs no recovery of its own.
3. QUEUED: when there is room, DEPLOYING. DEPLOYING: files are fetched and checked, the version is written aside and
   renamed, loaded, and test images are replayed: ACTIVE, or FAILED.
4. ACTIVE: a real inference every few seconds. A good one counts the time since the last; a bad one: DEGRADED.
5. DEGRADED: judged once more, then unloaded and loaded (a killed backend process heals no other way; a restarted Triton
   has forgotten its models), then judged: ACTIVE.
6. A candidate beside an ACTIVE or DEGRADED one is put there as in 3, under a name of its own, and probed as in 4 once
   it is ready; whatever goes wrong with it, it is rejected, and the other serves on.
7. STOPPING: unloaded, removed, STOPPED.
8. What is on a Triton that is drained, or does not answer for a while, is moved to another with room: loaded and
   replayed there as a candidate is, and then served from there.
9. Whatever else a Triton or its repository has under names of ours is unloaded and removed, after a while in which
   every endpoint learns that it is not wanted any more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import asyncpg
import structlog
from prometheus_client import Gauge

from saucer.lib.errors import DataLossError, DomainError, NotFoundError
from saucer.publishing import domain
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Parity
from saucer.publishing.fleet import Fleet
from saucer.publishing.placement import model_name
from saucer.publishing.service import Deployments
from saucer.publishing.service.serving import LEASE
from saucer.publishing.triton import ModelFailed, TritonError

# Between two looks at what is wanted; PostgreSQL answers one within this, or the round is given up.
TICK_S = 0.5
ROUND_TIMEOUT_S = 3.0
# Between two probes of a deployment; sooner where its max duration ends sooner.
PROBE_EVERY = timedelta(seconds=2)
# Between two looks at a Triton: whether it answers, and what it has that nobody wants.
LOOK_EVERY_S = 2.0
# A Triton that does not answer for that long has lost its deployments to others that have room.
MOVE_AFTER_S = 10.0
# What is not wanted any more is left for this long: endpoints may send to it until they look again (endpoint.KNOWN_S).
RETIRE_AFTER_S = 2.0
# After something that is none of the model's fault: Triton or the object store was away.
PAUSE_S = 2.0
# A candidate that is not ready by then is rejected.
CANDIDATE_LIMIT = timedelta(minutes=15)

log = structlog.get_logger()
deployments_gauge = Gauge("saucer_publishing_deployments", "Deployments that take or await room in Triton", ["state"])

Act = Callable[[Deployment], Awaitable[None]]
_S = DeploymentState
_LOOK = "LOOK"
_CANDIDATE = "CANDIDATE"
_ORPHAN = "ORPHAN"
# What is given up when nobody wants it any more: loading takes long.
_LOADING = frozenset({_S.DEPLOYING, _S.DEGRADED, _CANDIDATE})
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DomainError, TritonError)


class Reconciler:
    """Acts on the registered Tritons and their repositories. Belongs to one event loop."""

    def __init__(self, deployments: Deployments, fleet: Fleet, *, holder: str) -> None:
        """`holder` names this replica."""
        self._serving = deployments.serving
        self._versions = deployments.versions
        self._tritons = deployments.tritons
        self._fleet = fleet
        self._holder = holder
        # What runs now, by place in a Triton, and for what it was begun.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._doing: dict[str, str] = {}
        # By place, and the loop's clock: not to be acted on before; last probed; not wanted since.
        self._paused_until_s: dict[str, float] = {}
        self._probed_at_s: dict[str, float] = {}
        self._unwanted_since_s: dict[str, float] = {}
        # By Triton, and the loop's clock: does not answer since.
        self._dead_since_s: dict[str, float] = {}
        self._look_at_s = 0.0
        self._acts: dict[DeploymentState, Act] = {
            _S.DEPLOYING: self._deploy,
            _S.ACTIVE: self._probe,
            _S.DEGRADED: self._heal,
            _S.STOPPING: self._stop,
        }

    async def run(self) -> None:
        """Until cancelled; then the lease is given back, so that another replica acts at once."""
        loop = asyncio.get_running_loop()
        held_until_s = 0.0
        try:
            while True:
                try:
                    async with asyncio.timeout(ROUND_TIMEOUT_S):
                        asked_at_s = loop.time()
                        if await self._serving.take_lease(self._holder):
                            held_until_s = asked_at_s + LEASE.total_seconds()
                            await self._round()
                except _AWAY as error:
                    log.warning("reconcile_interrupted", error=repr(error))
                # A round may hang for ROUND_TIMEOUT_S before this is looked at again.
                if loop.time() > held_until_s - ROUND_TIMEOUT_S - 2 * TICK_S:
                    await self._end_tasks()
                    deployments_gauge.clear()
                await asyncio.sleep(TICK_S)
        finally:
            await self._end_tasks()
            try:
                await self._serving.release_lease(self._holder)
            except _AWAY as error:
                log.warning("lease_not_released", error=repr(error))

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _round(self) -> None:
        deployments, now = await self._serving.wanted()
        self._measure(deployments)
        await self._find_room([deployment for deployment in deployments if deployment.state is _S.QUEUED])
        for deployment in deployments:
            if deployment.state in self._acts and _is_due(deployment, now):
                self._begin(_place(deployment), deployment.state, self._acts[deployment.state], deployment)
            if deployment.candidate is not None:
                self._look_at_candidate(deployment, now)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            for triton in await self._fleet.refresh():
                if triton.triton_id not in self._tasks:
                    self._spawn(triton.triton_id, _LOOK, self._look_at(triton.triton_id))
            gone = {key for key, since_s in self._dead_since_s.items() if now_s - since_s >= MOVE_AFTER_S}
            for deployment in await self._tritons.movable(gone):
                if not await self._versions.move(deployment, set(self._dead_since_s)):
                    log.info("nowhere_to_move", deployment_id=deployment.deployment_id)

    async def _find_room(self, queued: list[Deployment]) -> None:
        full: set[tuple[str, str]] = set()
        for deployment in queued:
            spec = (deployment.form.region_id, deployment.form.spec_id)
            if spec not in full and not await self._serving.deploy(deployment, self._holder, set(self._dead_since_s)):
                full.add(spec)

    async def _look_at(self, triton_id: str) -> None:
        """Whether a Triton answers, and whether it has what nobody wants."""
        live = await (await self._fleet.placement(triton_id)).live()
        if live:
            self._dead_since_s.pop(triton_id, None)
        else:
            self._dead_since_s.setdefault(triton_id, asyncio.get_running_loop().time())
        await self._tritons.report(triton_id, live=live)
        if live:
            await self._find_orphans(triton_id)

    def _measure(self, deployments: list[Deployment]) -> None:
        for state in (*domain.PLACED, _S.QUEUED):
            deployments_gauge.labels(state).set(sum(deployment.state is state for deployment in deployments))
        wanted = {name for deployment in deployments for name in _places(deployment)}
        for memory in (self._paused_until_s, self._probed_at_s):
            for gone in memory.keys() - wanted:
                del memory[gone]
        for name, doing in self._doing.items():
            if doing == _CANDIDATE and name not in wanted:
                self._tasks[name].cancel()

    def _look_at_candidate(self, deployment: Deployment, now: datetime) -> None:
        assert deployment.candidate is not None
        name = _candidate_place(deployment)
        if not deployment.candidate.ready:
            late = now - deployment.candidate.proposed_at > CANDIDATE_LIMIT
            self._begin(name, _CANDIDATE, self._give_up if late else self._prepare, deployment)
        elif self._probed_at_s.get(name, 0.0) + PROBE_EVERY.total_seconds() <= asyncio.get_running_loop().time():
            self._probed_at_s[name] = asyncio.get_running_loop().time()
            self._begin(name, _CANDIDATE, self._probe_candidate, deployment)

    def _begin(self, name: str, doing: str, act: Act, deployment: Deployment) -> None:
        if name in self._tasks:
            # Loading takes long, and nobody wants it any more.
            if doing == _S.STOPPING and self._doing.get(name) in _LOADING:
                self._tasks[name].cancel()
        elif self._paused_until_s.get(name, 0.0) <= asyncio.get_running_loop().time():
            self._spawn(name, doing, act(deployment))

    def _spawn(self, name: str, doing: str, work: Awaitable[None]) -> None:
        self._doing[name] = doing
        self._tasks[name] = asyncio.create_task(self._guard(name, work), name=f"reconcile {name}")

    async def _guard(self, name: str, work: Awaitable[None]) -> None:
        """Runs an action. Whatever goes wrong with one deployment, the others are served on."""
        try:
            await work
        except _AWAY as error:
            log.warning("action_put_off", name=name, error=repr(error))
            self._pause(name)
        except Exception:
            log.exception("action_failed", name=name)
            self._pause(name)
        finally:
            self._tasks.pop(name, None)
            self._doing.pop(name, None)

    def _pause(self, name: str) -> None:
        self._paused_until_s[name] = asyncio.get_running_loop().time() + PAUSE_S

    # DEPLOYING

    async def _deploy(self, deployment: Deployment) -> None:
        model = await self._serving.model_of(deployment.version)
        try:
            placement = await self._fleet.placement(deployment.triton_id)
            parity, probe_key = await placement.put(
                _name(deployment), deployment.start_number, model, anew=deployment.attempts > 0
            )
        except (NotFoundError, DataLossError) as error:
            await self._serving.fail(deployment, EndReason.FAILED, error.message)
        except ModelFailed as error:
            await self._load_failed(deployment, error.reason)
        else:
            if parity.ok:
                await self._serving.activate(deployment, parity, probe_key)
            else:
                await self._serving.fail(deployment, EndReason.PARITY_FAILED, _disagreement(parity), parity)

    async def _load_failed(self, deployment: Deployment, reason: str) -> None:
        log.warning("load_failed", deployment_id=deployment.deployment_id, attempts=deployment.attempts, error=reason)
        if deployment.attempts + 1 >= domain.LOAD_ATTEMPTS:
            await self._serving.fail(deployment, EndReason.FAILED, f"Triton does not serve the model: {reason}")
        else:
            await self._serving.put_off(deployment, reason)

    # ACTIVE and DEGRADED

    async def _probe(self, deployment: Deployment) -> None:
        problem = await self._judge(deployment)
        if problem is None:
            await self._serving.count(deployment)
        else:
            log.warning("degraded", deployment_id=deployment.deployment_id, error=problem)
            await self._serving.degrade(deployment, problem)

    async def _judge(self, deployment: Deployment) -> str | None:
        placement = await self._fleet.placement(deployment.triton_id)
        return await placement.judge(_name(deployment), deployment.start_number, deployment.version.probe_key)

    async def _heal(self, deployment: Deployment) -> None:
        if await self._judge(deployment) is None:
            await self._serving.recover(deployment)
            return
        model = await self._serving.model_of(deployment.version)
        try:
            placement = await self._fleet.placement(deployment.triton_id)
            await placement.put_back(_name(deployment), deployment.start_number, model)
            problem = await self._judge(deployment)
        except ModelFailed as error:
            problem = error.reason
        if problem is None:
            await self._serving.recover(deployment)
        else:
            await self._serving.put_off(deployment, problem)

    # A candidate

    async def _prepare(self, deployment: Deployment) -> None:
        assert deployment.candidate is not None
        model = await self._serving.model_of(deployment.candidate.version)
        try:
            placement = await self._fleet.placement(deployment.candidate.triton_id)
            parity, probe_key = await placement.put(
                _candidate_name(deployment), deployment.start_number, model, anew=False
            )
        except (NotFoundError, DataLossError) as error:
            await self._versions.reject(deployment, error.message)
        except ModelFailed as error:
            # Not tried again: the other serves on, and the user, who is told at once, can ask again.
            await self._versions.reject(deployment, f"Triton does not serve the model: {error.reason}")
        else:
            if parity.ok:
                await self._versions.pass_gate(deployment, parity, probe_key)
            else:
                await self._versions.reject(deployment, _disagreement(parity))

    async def _probe_candidate(self, deployment: Deployment) -> None:
        assert deployment.candidate is not None
        probe_key = deployment.candidate.version.probe_key
        placement = await self._fleet.placement(deployment.candidate.triton_id)
        problem = await placement.judge(_candidate_name(deployment), deployment.start_number, probe_key)
        # While the other does not serve either, it is Triton that is in trouble, and not the candidate.
        if problem is not None and await self._judge(deployment) is None:
            await self._versions.reject(deployment, f"It failed while it had a share of the traffic: {problem}")

    async def _give_up(self, deployment: Deployment) -> None:
        await self._versions.reject(deployment, "It was not ready in time.")

    # STOPPING, and what nobody wants

    async def _stop(self, deployment: Deployment) -> None:
        try:
            await (await self._fleet.placement(deployment.triton_id)).remove(_name(deployment))
        except ModelFailed as error:
            await self._serving.put_off(deployment, error.reason)
        else:
            await self._serving.stopped(deployment)

    async def _find_orphans(self, triton_id: str) -> None:
        # Triton and the repository first: a deployment is in the database before anything of it is in them.
        placement = await self._fleet.placement(triton_id)
        held = {f"{triton_id}/{name}": (name, starts) for name, starts in (await placement.held()).items()}
        wanted = {place: placed for placed in await self._serving.placed() for place in _places(placed)}
        now_s = asyncio.get_running_loop().time()
        unwanted = held.keys() - wanted.keys()
        for place in [place for place in self._unwanted_since_s if place.startswith(f"{triton_id}/")]:
            if place not in unwanted:
                del self._unwanted_since_s[place]
        for place, (name, starts) in held.items():
            if place in self._tasks:
                continue
            if place in unwanted:
                if now_s - self._unwanted_since_s.setdefault(place, now_s) >= RETIRE_AFTER_S:
                    log.info("orphan_removed", place=place)
                    self._spawn(place, _ORPHAN, placement.remove(name))
            elif stale := set(starts) - {wanted[place].start_number}:
                self._spawn(place, _ORPHAN, placement.remove_starts(name, stale))


def _name(deployment: Deployment) -> str:
    return model_name(deployment.deployment_id, deployment.version.number)


def _candidate_name(deployment: Deployment) -> str:
    assert deployment.candidate is not None
    return model_name(deployment.deployment_id, deployment.candidate.version.number)


def _place(deployment: Deployment) -> str:
    """Of the version that serves: which Triton, and the name there."""
    return f"{deployment.triton_id}/{_name(deployment)}"


def _candidate_place(deployment: Deployment) -> str:
    assert deployment.candidate is not None
    return f"{deployment.candidate.triton_id}/{_candidate_name(deployment)}"


def _places(deployment: Deployment) -> list[str]:
    """All that Tritons are to have of it."""
    return [_place(deployment), *([_candidate_place(deployment)] if deployment.candidate else [])]


def _disagreement(parity: Parity) -> str:
    return (
        f"Only {parity.paired} of {parity.boxes} boxes of the replay agree with the evaluation; worst: images "
        f"{', '.join(str(image) for image in parity.worst_images)}; the version's gate says what differs."
    )


def _is_due(deployment: Deployment, now: datetime) -> bool:
    if deployment.state is not _S.ACTIVE:
        return deployment.retry_at is None or deployment.retry_at <= now
    assert deployment.probed_at is not None, "it is ACTIVE"
    due_at = deployment.probed_at + PROBE_EVERY
    return now >= min([due_at, *(at for at in (deployment.stop_at, deployment.idle_stop_at) if at is not None)])
