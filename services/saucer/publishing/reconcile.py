"""Makes Triton have what the database wants: a loop that compares the two and acts on what differs.

1. One replica acts, elected by a lease row; one that cannot prolong its lease ends what it does before the lease does.
2. Each round looks at every deployment anew, and at most one action runs on each; every action can be repeated from its
   beginning, so a crash needs no recovery of its own.
3. QUEUED: when there is room, DEPLOYING. DEPLOYING: files are fetched and checked, the version is written aside and
   renamed, loaded, and test images are replayed: ACTIVE, or FAILED.
4. ACTIVE: a real inference every few seconds. A good one counts the time since the last; a bad one: DEGRADED.
5. DEGRADED: judged once more, then unloaded and loaded (a killed backend process heals no other way; a restarted Triton
   has forgotten its models), then judged: ACTIVE.
6. STOPPING: unloaded, removed, STOPPED.
7. Whatever else Triton or its repository has under names of ours is unloaded and removed.
"""

import asyncio
import io
import re
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import structlog
from PIL import Image
from prometheus_client import Counter, Gauge

from saucer import serving
from saucer.lib.errors import DataLossError, DomainError, NotFoundError, UnavailableError
from saucer.lib.objects import Objects
from saucer.publishing import domain, repository
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Model
from saucer.publishing.replay import choose_samples, replay
from saucer.publishing.service.serving import LEASE, Serving
from saucer.publishing.triton import ModelFailed, TritonClient, TritonError, TritonUnavailable
from saucer.serving.errors import ModelFolderError
from saucer.serving.spec import ModelSpec
from saucer.serving.triton_config import config_pbtxt

# Between two looks at what is wanted; PostgreSQL answers one within this, or the round is given up.
TICK_S = 0.5
ROUND_TIMEOUT_S = 3.0
# Between two probes of a deployment; sooner where its max duration ends sooner.
PROBE_EVERY = timedelta(seconds=2)
# A model that does not answer its probe within this does not serve.
PROBE_TIMEOUT_S = 10.0
ORPHANS_EVERY_S = 5.0
# After something that is none of the model's fault: Triton or the object store was away.
PAUSE_S = 2.0
# A model that does not serve may have requests that never end: they are not waited for for long.
HEAL_DRAIN_S = 2.0

log = structlog.get_logger()
deployments_gauge = Gauge("saucer_publishing_deployments", "Deployments that take or await room in Triton", ["state"])
probes_total = Counter("saucer_publishing_probes_total", "Probes by what they found", ["outcome"])
replays_total = Counter("saucer_publishing_replays_total", "Replays by whether they agreed", ["ok"])
# There from the start: what first appears as 1 has not increased, in Prometheus' eyes.
replays_total.labels(False)

Act = Callable[[Deployment], Awaitable[None]]
_S = DeploymentState
_ORPHANS = "orphans"
_NAME = re.compile(r"deployment_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DomainError, TritonError)


def model_name(deployment_id: str) -> str:
    """What a deployment is called inside Triton; its version there is its start number."""
    return f"deployment_{deployment_id}"


class Reconciler:
    """Acts on one Triton server and its repository. Belongs to one event loop."""

    def __init__(
        self,
        deployments: Serving,
        triton: TritonClient,
        objects: Objects,
        *,
        model_repository: Path,
        work_folder: Path,
        threads: int,
        holder: str,
    ) -> None:
        """`threads` is what one model may use on Triton's machine; `holder` names this replica."""
        self._deployments = deployments
        self._triton = triton
        self._objects = objects
        self._repository = model_repository
        self._work_folder = work_folder
        self._threads = threads
        self._holder = holder
        # What runs now, by deployment id, and for which state it was begun.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._doing: dict[str, DeploymentState] = {}
        # By deployment id: not to be acted on before, by the loop's clock.
        self._paused_until_s: dict[str, float] = {}
        self._probe_images: dict[str, bytes] = {}
        self._orphans_at_s = 0.0
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
        # What a killed predecessor left.
        await asyncio.to_thread(shutil.rmtree, self._work_folder, ignore_errors=True)
        try:
            while True:
                try:
                    async with asyncio.timeout(ROUND_TIMEOUT_S):
                        asked_at_s = loop.time()
                        if await self._deployments.take_lease(self._holder):
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
                await self._deployments.release_lease(self._holder)
            except _AWAY as error:
                log.warning("lease_not_released", error=repr(error))

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _round(self) -> None:
        deployments, now = await self._deployments.wanted()
        self._measure(deployments)
        queued = [deployment for deployment in deployments if deployment.state is _S.QUEUED]
        for deployment in queued:
            if not await self._deployments.deploy(deployment, self._holder):
                break
        for deployment in deployments:
            if deployment.state in self._acts and _is_due(deployment, now):
                self._begin(deployment)
        if asyncio.get_running_loop().time() >= self._orphans_at_s and _ORPHANS not in self._tasks:
            self._orphans_at_s = asyncio.get_running_loop().time() + ORPHANS_EVERY_S
            self._spawn(_ORPHANS, self._find_orphans())

    def _measure(self, deployments: list[Deployment]) -> None:
        for state in (*domain.PLACED, _S.QUEUED):
            deployments_gauge.labels(state).set(sum(deployment.state is state for deployment in deployments))
        wanted = {deployment.deployment_id for deployment in deployments}
        for gone in set(self._probe_images) - wanted:
            del self._probe_images[gone]
        for gone in set(self._paused_until_s) - wanted:
            del self._paused_until_s[gone]

    def _begin(self, deployment: Deployment) -> None:
        key = deployment.deployment_id
        if key in self._tasks:
            # Loading takes long, and nobody wants it any more.
            if deployment.state is _S.STOPPING and self._doing.get(key) in (_S.DEPLOYING, _S.DEGRADED):
                self._tasks[key].cancel()
        elif self._paused_until_s.get(key, 0.0) <= asyncio.get_running_loop().time():
            self._doing[key] = deployment.state
            self._spawn(key, self._acts[deployment.state](deployment))

    def _spawn(self, key: str, work: Awaitable[None]) -> None:
        self._tasks[key] = asyncio.create_task(self._guard(key, work), name=f"reconcile {key}")

    async def _guard(self, key: str, work: Awaitable[None]) -> None:
        """Runs an action. Whatever goes wrong with one deployment, the others are served on."""
        try:
            await work
        except _AWAY as error:
            log.warning("action_put_off", key=key, error=repr(error))
            self._pause(key)
        except Exception:
            log.exception("action_failed", key=key)
            self._pause(key)
        finally:
            self._tasks.pop(key, None)
            self._doing.pop(key, None)

    def _pause(self, key: str) -> None:
        self._paused_until_s[key] = asyncio.get_running_loop().time() + PAUSE_S

    # DEPLOYING

    async def _deploy(self, deployment: Deployment) -> None:
        await self._need_triton()
        model = await self._deployments.model_of(deployment)
        name, version = model_name(deployment.deployment_id), str(deployment.start_number)
        folder = self._work_folder / f"{name}-{version}"
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            samples = await choose_samples(self._objects, model, folder)
            if deployment.attempts:
                await self._triton.unload(name, HEAL_DRAIN_S)
            await self._load(deployment, model, folder)
            parity, probe_key = await replay(self._triton, self._objects, samples, name, version)
        except (NotFoundError, DataLossError) as error:
            await self._deployments.fail(deployment, EndReason.FAILED, error.message)
        except ModelFailed as error:
            await self._load_failed(deployment, error.reason)
        else:
            replays_total.labels(parity.ok).inc()
            if parity.ok:
                await self._deployments.activate(deployment, parity, probe_key)
            else:
                message = (
                    f"Only {parity.paired} of {parity.boxes} boxes of the replay agree with the evaluation; worst: "
                    f"images {', '.join(str(image) for image in parity.worst_images)}."
                )
                await self._deployments.fail(deployment, EndReason.PARITY_FAILED, message, parity)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _load(self, deployment: Deployment, model: Model, folder: Path) -> None:
        """Writes the version if it is not there, and loads it."""
        name, version = model_name(deployment.deployment_id), deployment.start_number
        if version not in await asyncio.to_thread(repository.list_versions, self._repository, name):
            for file in repository.MODEL_FILES:
                if file not in model.files:
                    raise DataLossError("MODEL_FILE_MISSING", f"The model has no {file}.")
                key, sha256 = model.files[file]
                await self._objects.download(key, folder / file, sha256=sha256)
            await asyncio.to_thread(_check_classes, folder, model)
        await asyncio.to_thread(
            repository.write_version,
            self._repository,
            name,
            version,
            files=folder,
            serving_source=Path(serving.__path__[0]),
            config=config_pbtxt(name, version=version, threads=self._threads),
        )
        await self._triton.load(name)

    async def _load_failed(self, deployment: Deployment, reason: str) -> None:
        log.warning("load_failed", deployment_id=deployment.deployment_id, attempts=deployment.attempts, error=reason)
        if deployment.attempts + 1 >= domain.LOAD_ATTEMPTS:
            await self._deployments.fail(deployment, EndReason.FAILED, f"Triton does not serve the model: {reason}")
        else:
            await self._deployments.put_off(deployment, reason)

    # ACTIVE and DEGRADED

    async def _probe(self, deployment: Deployment) -> None:
        problem = await self._judge(deployment)
        if problem is None:
            await self._deployments.count(deployment)
        else:
            log.warning("degraded", deployment_id=deployment.deployment_id, error=problem)
            await self._deployments.degrade(deployment, problem)

    async def _judge(self, deployment: Deployment) -> str | None:
        """None if it serves, else why not."""
        name, version = model_name(deployment.deployment_id), str(deployment.start_number)
        try:
            problem = await self._triton.probe(name, await self._probe_image(deployment), version, PROBE_TIMEOUT_S)
        except TritonUnavailable as error:
            problem = f"Triton does not answer: {error.reason}"
        probes_total.labels("bad" if problem else "good").inc()
        return problem

    async def _probe_image(self, deployment: Deployment) -> bytes:
        """The kept test image; a plain one while the object store does not give it: whether it serves, any shows."""
        known = self._probe_images.get(deployment.deployment_id)
        if known is not None:
            return known
        key = deployment.probe_key
        try:
            image = await self._objects.get(key, sha256=key.rpartition("/")[2])
        except DomainError as error:
            log.warning("probe_image_missing", deployment_id=deployment.deployment_id, error=error.message)
            return _PLAIN_IMAGE
        self._probe_images[deployment.deployment_id] = image
        return image

    async def _heal(self, deployment: Deployment) -> None:
        if await self._judge(deployment) is None:
            await self._deployments.recover(deployment)
            return
        name = model_name(deployment.deployment_id)
        await self._need_triton()
        folder = self._work_folder / f"{name}-{deployment.start_number}"
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            await self._triton.unload(name, HEAL_DRAIN_S)
            await self._load(deployment, await self._deployments.model_of(deployment), folder)
            problem = await self._judge(deployment)
        except ModelFailed as error:
            problem = error.reason
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if problem is None:
            await self._deployments.recover(deployment)
        else:
            await self._deployments.put_off(deployment, problem)

    async def _need_triton(self) -> None:
        """Raises UnavailableError before any work is done for a server that is not there."""
        if not await self._triton.live():
            raise UnavailableError("TRITON_UNAVAILABLE", "Triton does not answer.")

    # STOPPING, and what nobody wants

    async def _stop(self, deployment: Deployment) -> None:
        try:
            await self._remove(model_name(deployment.deployment_id))
        except ModelFailed as error:
            await self._deployments.put_off(deployment, error.reason)
        else:
            await self._deployments.stopped(deployment)

    async def _remove(self, name: str) -> None:
        await self._triton.unload(name)
        await asyncio.to_thread(_remove_model, self._repository, name)

    async def _find_orphans(self) -> None:
        # Triton and the repository first: a deployment is in the database before anything of it is in them.
        loaded = {entry.model for entry in await self._triton.index() if entry.state not in ("", "UNAVAILABLE")}
        on_disk = await asyncio.to_thread(_versions, self._repository)
        placed = {model_name(found.deployment_id): found for found in await self._deployments.placed()}
        for name in sorted(loaded | on_disk.keys()):
            match = _NAME.fullmatch(name)
            # The same key as the deployment's own actions: what is removed is not being written.
            if match is None or match[1] in self._tasks:
                continue
            deployment = placed.get(name)
            if deployment is None:
                log.info("orphan_removed", model=name)
                self._spawn(match[1], self._remove(name))
            elif stale := set(on_disk.get(name, [])) - {deployment.start_number}:
                self._spawn(match[1], asyncio.to_thread(_remove_versions, self._repository, name, stale))


def _is_due(deployment: Deployment, now: datetime) -> bool:
    if deployment.state is not _S.ACTIVE:
        return deployment.retry_at is None or deployment.retry_at <= now
    assert deployment.probed_at is not None, "it is ACTIVE"
    due_at = deployment.probed_at + PROBE_EVERY
    return now >= (due_at if deployment.stop_at is None else min(due_at, deployment.stop_at))


def _check_classes(folder: Path, model: Model) -> None:
    """Labels are indices: answers are named by the classes that training told, so both must be the same."""
    try:
        classes = ModelSpec.load(folder).classes
    except ModelFolderError as error:
        raise DataLossError("MODEL_UNREADABLE", str(error)) from error
    if classes != model.classes:
        raise DataLossError("CLASSES_DIFFER", f"model.json has the classes {classes}, the model {model.classes}.")


def _versions(folder: Path) -> dict[str, list[int]]:
    return {name: repository.list_versions(folder, name) for name in repository.list_models(folder)}


def _remove_model(folder: Path, name: str) -> None:
    # At least once, which removes a folder without any version too.
    for version in repository.list_versions(folder, name) or [1]:
        repository.remove_version(folder, name, version)


def _remove_versions(folder: Path, name: str, versions: set[int]) -> None:
    for version in versions:
        repository.remove_version(folder, name, version)


def _plain_image() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(encoded, "PNG")
    return encoded.getvalue()


_PLAIN_IMAGE = _plain_image()
