"""Makes the Tritons have what the database wants: a loop that compares the two and acts on what differs.

1. One replica acts, elected by a lease row; one that cannot prolong its lease ends what it does before the lease does.
2. Each round looks at every deployment anew, and at most one action runs on each name in Triton; every action can be
   repeated from its beginning, so a crash needs no recovery of its own.
3. QUEUED: as soon as a Triton has room, DEPLOYING, with an instance there; of several replicas each on a Triton of its
   own, the most free first. Fewer than are wanted are enough to begin with: what serves is paid for by its share of
   the replicas, so waiting for the rest would give the user nothing for the same hold, and two deployments could wait
   for each other. What is lacking is placed as soon as there is room, before what is QUEUED; until then the deployment
   says how many serve. Only with no room for any it stays QUEUED, uncharged.
4. An instance is LOADING: files are fetched and checked, the version is written aside and renamed, loaded, and test
   images are replayed; then it is SERVING. The first one makes the deployment ACTIVE; one that fails, FAILED, unless
   another serves or may yet.
5. SERVING: a real inference every few seconds. A good one counts the time since the last, by the instance's share of
   the replicas, as far as this process was there to answer callers (attendance.py); at a bad one the instance is LOST,
   and with the last one the deployment DEGRADED.
6. LOST: judged once more, then unloaded and loaded (a killed backend process heals no other way; a restarted Triton
   has forgotten its models), then judged: SERVING. Meanwhile the endpoint asks the other instances. Where that does not
   help, the next attempt writes the files anew: a disk may have lost something of them.
7. A candidate has an instance beside each of the deployment's, under a name of its own, put there as in 4 and probed as
   in 5. Whatever goes wrong with it, it is rejected, and the other version serves on; but where that does not serve
   either, it is the Triton that is in trouble, and the candidate's instance is LOST with the other. One that does not
   come back as the other does is rejected after a few attempts.
8. STOPPING: each instance is unloaded and removed; with the last one STOPPED. A Triton that does not answer is waited
   for only while the instance there was thought to serve.
9. What is on a Triton that is drained, does not answer for a while, or is registered at another spec by now, gets an
   instance on another with room; once that serves, the old one is given up, one for one, so never fewer serve than
   before. A candidate that is ready is to serve there as well first, for as long as that may be expected.
10. What fails LEAVE_ATTEMPTS times at a Triton (instances.py) is tried at another with room as well, first where
    least fails so, and given up once that serves; until then the first is asked on, at growing pauses. Once more fail
    so than there are to be replicas, it is tried nowhere else.
11. What keeps an action from being done, and is none of the model's fault (a full disk, the object store or Triton
    away), is told as the instance's message, and the action is tried again; it counts as no attempt. But where it is
    a Triton's repository that has failed for a while, what does not serve there is tried at another with room as in 9,
    and what is placed goes there last, until something has been put there.
12. Whatever else a Triton or its repository has under names of ours is unloaded and removed, after a while in which
    every endpoint learns that it is not wanted any more.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import structlog
from prometheus_client import Gauge

from saucer.lib.errors import DataLossError, DomainError, NotFoundError
from saucer.publishing import domain, lifecycle
from saucer.publishing.attendance import Attendance
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Parity, Triton, Version
from saucer.publishing.fleet import Fleet
from saucer.publishing.instances import Instance, InstanceState
from saucer.publishing.placement import RepositoryFailed, model_name
from saucer.publishing.replay import ImagesRefused
from saucer.publishing.service import Deployments
from saucer.publishing.service.serving import LEASE
from saucer.publishing.service.versions import Blames
from saucer.publishing.triton import AWAY, ModelFailed, TritonError, TritonUnavailable
from saucer.publishing.turns import Turns

# Between two looks at what is wanted; PostgreSQL answers one within this, or the round is given up.
TICK_S = 0.5
ROUND_TIMEOUT_S = 3.0
# Between two probes of an instance; sooner where its max duration ends sooner.
PROBE_EVERY = timedelta(seconds=2)
# Between two looks at a Triton: whether it answers, and what it has that nobody wants.
LOOK_EVERY_S = 2.0
# A Triton that does not answer for that long has lost its deployments to others that have room; one whose repository
# fails for that long, those that do not serve there.
MOVE_AFTER_S = 10.0
# What is not wanted any more is left for this long: endpoints may send to it until they look again (endpoint.KNOWN_S).
RETIRE_AFTER_S = 2.0
# After something that is none of the model's fault: Triton, the object store or room on a disk was lacking.
PAUSE_S = 2.0
# Loads on one Triton, each with a process that tries the model: of more at once, on few cores, all would take too long.
LOADS_AT_ONCE = 4
# A candidate that is not ready by then is rejected.
CANDIDATE_LIMIT = timedelta(minutes=15)

log = structlog.get_logger()
deployments_gauge = Gauge("saucer_publishing_deployments", "Deployments that take or await room in Triton", ["state"])
missing_gauge = Gauge("saucer_publishing_missing_replicas", "Replicas of ACTIVE deployments that do not serve")

Act = Callable[[Deployment, Instance], Awaitable[None]]
Tell = Callable[[str], Awaitable[None]]
_S = DeploymentState
_LOOK = "LOOK"
_ORPHAN = "ORPHAN"
# What is given up when nobody wants it any more: loading takes long.
_LONG = frozenset({InstanceState.LOADING, InstanceState.LOST})


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
        # By place, and the loop's clock: not to be acted on before; not wanted since.
        self._paused_until_s: dict[str, float] = {}
        self._unwanted_since_s: dict[str, float] = {}
        # By Triton, and the loop's clock: does not answer since.
        self._dead_since_s: dict[str, float] = {}
        # Likewise: its repository fails since.
        self._failing_since_s: dict[str, float] = {}
        # By Triton: who loads there.
        self._turns: defaultdict[str, Turns] = defaultdict(lambda: Turns(LOADS_AT_ONCE))
        self._look_at_s = 0.0
        self._attendance = Attendance()
        self._acts: Mapping[InstanceState, Act] = {
            InstanceState.LOADING: self._load,
            InstanceState.SERVING: self._probe,
            InstanceState.LOST: self._heal,
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
                        leased = await self._serving.take_lease(self._holder)
                        self._attendance.round(loop.time())
                        if leased:
                            held_until_s = asked_at_s + LEASE.total_seconds()
                            await self._round()
                except AWAY as error:
                    log.warning("reconcile_interrupted", error=repr(error))
                # A round may hang for ROUND_TIMEOUT_S before this is looked at again.
                if loop.time() > held_until_s - ROUND_TIMEOUT_S - 2 * TICK_S:
                    await self._stand_by()
                    deployments_gauge.clear()
                    missing_gauge.set(0)
                await asyncio.sleep(TICK_S)
        finally:
            await self._end_tasks()
            try:
                await self._serving.release_lease(self._holder)
            except AWAY as error:
                log.warning("lease_not_released", error=repr(error))

    async def _stand_by(self) -> None:
        """What was seen is old by the time the lease comes back: Tritons and what is wanted are looked at anew."""
        await self._end_tasks()
        self._dead_since_s.clear()
        self._failing_since_s.clear()
        self._unwanted_since_s.clear()
        self._paused_until_s.clear()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _round(self) -> None:
        deployments, now = await self._serving.wanted()
        self._measure(deployments)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            await self._look(deployments, now_s)
        failing = _lasting(self._failing_since_s, now_s)
        await self._find_room([deployment for deployment in deployments if deployment.state is _S.QUEUED], failing)
        for deployment in deployments:
            await self._look_at_candidate(deployment, now)
            for instance in deployment.instances:
                if _is_due(deployment, instance, now):
                    self._begin(deployment, instance)

    async def _look(self, deployments: list[Deployment], now_s: float) -> None:
        """At the Tritons, and at what is not where it is to be."""
        tritons = await self._fleet.refresh()
        for triton in tritons:
            if triton.triton_id not in self._tasks:
                self._spawn(triton.triton_id, _LOOK, self._look_at(triton.triton_id))
        leaving = _lasting(self._dead_since_s, now_s) | {triton.triton_id for triton in tritons if triton.draining}
        failing = _lasting(self._failing_since_s, now_s)
        for deployment in deployments:
            waiting = {item.triton_id for item in deployment.own_instances if not item.serving}
            left = leaving | _others(tritons, deployment) | (failing & waiting)
            placed = deployment.state not in domain.MOVABLE or lifecycle.is_placed(deployment, left)
            if not placed and not await self._serving.place(deployment, self._holder, left, failing):
                log.info("no_room", deployment_id=deployment.deployment_id)

    async def _find_room(self, queued: list[Deployment], failing: Collection[str]) -> None:
        full: set[tuple[str, str]] = set()
        for deployment in queued:
            spec = (deployment.form.region_id, deployment.form.spec_id)
            if spec not in full and not await self._serving.place(deployment, self._holder, (), failing):
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
        active = [deployment for deployment in deployments if deployment.state is _S.ACTIVE]
        missing_gauge.set(sum(deployment.form.replicas - len(deployment.counted) for deployment in active))
        wanted = {_place(deployment, instance) for deployment in deployments for instance in deployment.instances}
        for gone in self._paused_until_s.keys() - wanted:
            del self._paused_until_s[gone]
        for name, doing in self._doing.items():
            if doing in _LONG and name not in wanted:
                self._tasks[name].cancel()

    async def _look_at_candidate(self, deployment: Deployment, now: datetime) -> None:
        if deployment.candidate is None or deployment.candidate.ready:
            return
        if lifecycle.may_be_ready(deployment):
            await self._versions.pass_gate(deployment)
        elif now - deployment.candidate.proposed_at > CANDIDATE_LIMIT:
            told = next((item.message for item in deployment.candidate_instances if item.message), "")
            await self._versions.reject(deployment, f"It was not ready in time. {told}".strip())

    def _begin(self, deployment: Deployment, instance: Instance) -> None:
        place = _place(deployment, instance)
        stopping = deployment.state is _S.STOPPING
        if place in self._tasks:
            # Loading takes long, and nobody wants it any more.
            if stopping and self._doing.get(place) in _LONG:
                self._tasks[place].cancel()
        elif self._paused_until_s.get(place, 0.0) <= asyncio.get_running_loop().time():
            act = self._stop if stopping else self._acts[instance.state]
            doing = deployment.state if stopping else instance.state
            self._spawn(place, doing, act(deployment, instance), partial(self._serving.note, deployment, instance))

    def _spawn(self, name: str, doing: str, work: Awaitable[None], tell: Tell | None = None) -> None:
        self._doing[name] = doing
        self._tasks[name] = asyncio.create_task(self._guard(name, work, tell), name=f"reconcile {name}")

    async def _guard(self, name: str, work: Awaitable[None], tell: Tell | None) -> None:
        """Runs an action; what keeps it from being done is told to whoever waits for it."""
        try:
            await work
        except AWAY as error:
            log.warning("action_put_off", name=name, error=repr(error))
            await self._put_off(name, error, tell)
        except Exception as error:  # whatever is wrong with one deployment, the others are served on
            log.exception("action_failed", name=name)
            await self._put_off(name, error, tell)
        finally:
            self._tasks.pop(name, None)
            self._doing.pop(name, None)

    async def _put_off(self, name: str, error: Exception, tell: Tell | None) -> None:
        self._pause(name)
        if tell is not None:
            try:
                await tell(_trouble(error))
            except AWAY as silence:
                log.warning("trouble_not_told", name=name, error=repr(silence))

    def _pause(self, name: str) -> None:
        self._paused_until_s[name] = asyncio.get_running_loop().time() + PAUSE_S

    def _turn(self, deployment: Deployment, instance: Instance) -> AbstractAsyncContextManager[None]:
        """To load: first what served, then what is to serve, then candidates; of these, what has failed less often."""
        waits = 2 if not _is_own(deployment, instance) else int(instance.state is InstanceState.LOADING)
        return self._turns[instance.triton_id].turn(waits, instance.attempts)

    @contextmanager
    def _putting(self, instance: Instance) -> Iterator[None]:
        """Remembers since when its Triton's repository fails, until something has been put there."""
        try:
            yield
        except RepositoryFailed:
            self._failing_since_s.setdefault(instance.triton_id, asyncio.get_running_loop().time())
            raise
        self._failing_since_s.pop(instance.triton_id, None)

    # LOADING

    async def _load(self, deployment: Deployment, instance: Instance) -> None:
        model = await self._serving.model_of(_version(deployment, instance))
        try:
            placement = await self._fleet.placement(instance.triton_id)
            async with self._turn(deployment, instance):
                with self._putting(instance):
                    parity, probe_key = await placement.put(
                        _name(deployment, instance), deployment.start_number, model, anew=instance.attempts > 0
                    )
        except (NotFoundError, DataLossError) as error:
            await self._not_served(deployment, instance, EndReason.FAILED, error.message)
        except ImagesRefused as error:
            await self._not_served(deployment, instance, EndReason.PARITY_FAILED, error.reason)
        except ModelFailed as error:
            await self._load_failed(deployment, instance, error.reason)
        else:
            if parity.ok:
                await self._serving.activate(deployment, instance, parity, probe_key)
            else:
                await self._not_served(deployment, instance, EndReason.PARITY_FAILED, _disagreement(parity), parity)

    async def _load_failed(self, deployment: Deployment, instance: Instance, reason: str) -> None:
        log.warning("load_failed", deployment_id=deployment.deployment_id, place=instance.key, error=reason)
        if _is_own(deployment, instance):
            await self._serving.refuse_load(deployment, instance, reason)
            # Where it is to be tried elsewhere, that comes before the last attempt here.
            self._look_at_s = 0.0
        else:
            await self._not_served(deployment, instance, EndReason.FAILED, f"Triton does not serve the model: {reason}")

    async def _not_served(
        self, deployment: Deployment, instance: Instance, reason: EndReason, message: str, parity: Parity | None = None
    ) -> None:
        """An instance cannot be served: the end of what has no other, and of a candidate that is to blame."""
        if deployment.state is _S.DEPLOYING:
            await self._serving.rule_out(deployment, instance, reason, message, parity)
        elif not await self._reject(deployment, instance, message, lifecycle.is_beyond_help):
            await self._serving.put_off(deployment, instance, message)

    # SERVING and LOST

    async def _probe(self, deployment: Deployment, instance: Instance) -> None:
        problem = await self._judge(deployment, instance)
        if problem is None:
            await self._serving.count(deployment, instance, self._attended)
        elif not await self._reject_at_work(deployment, instance, problem):
            log.warning("instance_lost", deployment_id=deployment.deployment_id, place=instance.key, error=problem)
            await self._serving.lose(deployment, instance, problem)

    async def _reject_at_work(self, deployment: Deployment, instance: Instance, problem: str) -> bool:
        """As _reject, of what served; where Triton has forgotten it, it is Triton that is to blame."""
        placement = await self._fleet.placement(instance.triton_id)
        if not await placement.has(_name(deployment, instance), deployment.start_number):
            return False
        message = f"It failed while it had a share of the traffic: {problem}"
        return await self._reject(deployment, instance, message, lifecycle.fails_alone)

    def _attended(self) -> timedelta:
        return self._attendance.lasted(asyncio.get_running_loop().time())

    async def _reject(self, deployment: Deployment, instance: Instance, message: str, blames: Blames) -> bool:
        """Rejects a candidate that is to blame, and not the Triton: whether it does.

        The other version is asked itself, too: what is known of it may be as old as its last probe.
        """
        if _is_own(deployment, instance):
            return False
        beside = replace(instance, version_number=deployment.version.number)
        if await self._judge(deployment, beside) is not None:
            return False
        return await self._versions.reject_for(deployment, instance, message, blames)

    async def _judge(self, deployment: Deployment, instance: Instance) -> str | None:
        placement = await self._fleet.placement(instance.triton_id)
        probe_key = _version(deployment, instance).probe_key
        return await placement.judge(_name(deployment, instance), deployment.start_number, probe_key)

    async def _heal(self, deployment: Deployment, instance: Instance) -> None:
        version, name = _version(deployment, instance), _name(deployment, instance)
        placement = await self._fleet.placement(instance.triton_id)
        # Of several copies another one may have answered now.
        if await placement.judge(name, deployment.start_number, version.probe_key, thoroughly=True) is None:
            await self._serving.recover(deployment, instance)
            return
        model = await self._serving.model_of(version)
        try:
            async with self._turn(deployment, instance):
                with self._putting(instance):
                    await placement.put_back(name, deployment.start_number, model, anew=instance.attempts > 0)
            problem = await self._judge(deployment, instance)
        except ModelFailed as error:
            problem = error.reason
        except (NotFoundError, DataLossError) as error:
            problem = error.message
        if problem is None:
            await self._serving.recover(deployment, instance)
        elif not await self._reject(
            deployment, instance, f"It could not be brought back: {problem}", lifecycle.is_beyond_help
        ):
            await self._serving.put_off(deployment, instance, problem)

    # STOPPING, and what nobody wants

    async def _stop(self, deployment: Deployment, instance: Instance) -> None:
        try:
            await (await self._fleet.placement(instance.triton_id)).remove(_name(deployment, instance))
        except ModelFailed as error:
            await self._serving.put_off(deployment, instance, error.reason)
        except TritonUnavailable:
            if instance.serving:
                raise
            await self._serving.unloaded(deployment, instance)
        else:
            await self._serving.unloaded(deployment, instance)

    async def _find_orphans(self, triton_id: str) -> None:
        # Triton and the repository first: a deployment is in the database before anything of it is in them.
        placement = await self._fleet.placement(triton_id)
        held = {f"{triton_id}/{name}": (name, starts) for name, starts in (await placement.held()).items()}
        wanted = {
            _place(placed, instance): placed for placed in await self._serving.placed() for instance in placed.instances
        }
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


def _lasting(since_s: Mapping[str, float], now_s: float) -> set[str]:
    """Tritons with a trouble that has lasted for MOVE_AFTER_S."""
    return {triton_id for triton_id, begun_s in since_s.items() if now_s - begun_s >= MOVE_AFTER_S}


def _others(tritons: Sequence[Triton], deployment: Deployment) -> set[str]:
    """Those that are not of the spec that is paid for; one that carries it may have become so."""
    paid = (deployment.form.region_id, deployment.form.spec_id)
    return {triton.triton_id for triton in tritons if (triton.region_id, triton.spec_id) != paid}


def _is_own(deployment: Deployment, instance: Instance) -> bool:
    """Whether it is of the version that serves, or will; else it is the candidate's."""
    return instance.version_number == deployment.version.number


def _version(deployment: Deployment, instance: Instance) -> Version:
    if _is_own(deployment, instance):
        return deployment.version
    assert deployment.candidate is not None, "an instance is of one of the two"
    return deployment.candidate.version


def _name(deployment: Deployment, instance: Instance) -> str:
    return model_name(deployment.deployment_id, instance.version_number)


def _place(deployment: Deployment, instance: Instance) -> str:
    """Which Triton, and the name there."""
    return f"{instance.triton_id}/{_name(deployment, instance)}"


def _disagreement(parity: Parity) -> str:
    return (
        f"Only {parity.paired} of {parity.boxes} boxes of the replay agree with the evaluation; worst: images "
        f"{', '.join(str(image) for image in parity.worst_images)}; the version's gate says what differs."
    )


def _trouble(error: Exception) -> str:
    """A sentence for the deployment's owner, the same for the same trouble; paths and addresses are for the log."""
    match error:
        case TritonUnavailable():
            return "Triton does not answer."
        case TritonError():
            return error.reason
        case DomainError(reason="STORE_UNAVAILABLE"):
            return "The object store is not available."
        case DomainError():
            return error.message
        case OSError():
            return f"A file or a connection of publishing fails: {error.strerror or type(error).__name__}."
    return "Something unexpected fails; the log of publishing says more."


def _is_due(deployment: Deployment, instance: Instance, now: datetime) -> bool:
    if deployment.state is _S.STOPPING or instance.probed_at is None:
        return instance.retry_at is None or instance.retry_at <= now
    ends = (at for at in (deployment.stop_at, deployment.idle_stop_at) if at is not None)
    return now >= min([instance.probed_at + PROBE_EVERY, *ends])
