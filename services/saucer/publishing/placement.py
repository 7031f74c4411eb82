"""Versions in one Triton server and its repository: put there, replayed, judged, healed and removed.

Each version of a deployment has a name of its own in Triton, so that a candidate that blocks its name blocks no other;
Triton's version number there is the deployment's start.

How a model is put there:

1. The first time on a spec, all RUNTIMES, or GPU_RUNTIMES, are tried on the machine that serves, and the fastest is
   taken (serving/choosing.py); later the one that was taken then. If one failed that the machine has, memory may have
   been short for it: then all are tried again after a while (service/gates.py), and the better result is kept.
2. Its shape is the Triton's: copies × threads. One copy with all threads answers soonest; as many copies with a thread
   each answer some 15 % more images a second, for the memory of each. Only one copy measures the runtimes.
3. Test images are replayed, and compared within the tolerance of that runtime. One that is refused ends it: evaluation
   has read it, and no runtime reads another way.
4. If they do not agree, the next best runtime is loaded in its place and replayed, and so on to that of evaluations.
   The result is kept, and once it is good, the choice. A complete one goes only where its boxes do not agree: that it
   does not load may pass, and the runtime of evaluations serves only that time.
5. What is brought back later gets the runtime that was kept, and no replay.
"""

import asyncio
import io
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
from PIL import Image
from prometheus_client import Counter

from saucer import serving
from saucer.lib.errors import DataLossError, DomainError, UnavailableError
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.publishing import repository
from saucer.publishing.domain import LogLine, Model, Parity, Triton
from saucer.publishing.gate import Gate, RuntimeChoice, explain, fall_back, make_gate
from saucer.publishing.replay import ImagesRefused, Sample, choose_samples, replay
from saucer.publishing.service.gates import Gates
from saucer.publishing.service.monitoring import Monitoring
from saucer.publishing.triton import ModelFailed, TritonClient, TritonUnavailable
from saucer.serving.errors import ModelFolderError
from saucer.serving.runtime import EVALUATED_WITH, GPU_RUNTIMES, RUNTIMES, TOLERANCES
from saucer.serving.spec import ModelSpec
from saucer.serving.triton_config import config_pbtxt

# A model that does not answer its probe within this does not serve.
PROBE_TIMEOUT_S = 10.0
# One of several copies is asked that often, on average, before all are thought to serve again.
PROBES_OF_A_COPY = 4
# A model that does not serve may have requests that never end: they are not waited for for long.
HEAL_DRAIN_S = 2.0
# Of the images that probes send, kept in memory by their keys; above it all are read anew.
MAX_PROBE_IMAGES = 1000

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()
probes_total = Counter("saucer_publishing_probes_total", "Probes by what they found", ["outcome"])
replays_total = Counter("saucer_publishing_replays_total", "Replays by whether they agreed", ["ok"])
# There from the start: what first appears as 1 has not increased, in Prometheus' eyes.
replays_total.labels(False)

# The number is lacking in what was put there before deployments had versions.
_NAME = re.compile(r"deployment_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:_(\d+))?")


def model_name(deployment_id: str, version_number: int) -> str:
    """What a version of a deployment is called inside Triton; its version there is the start number."""
    return f"deployment_{deployment_id}_{version_number}"


def read_name(name: str) -> tuple[str, int] | None:
    """The deployment's id and the version's number; None: it is not a name of ours."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2] or 1)) if match else None


def known_name(name: str) -> tuple[str, int]:
    """The same, of a name that is ours."""
    found = read_name(name)
    assert found is not None, f"{name} is ours"
    return found


class RepositoryFailed(OSError):  # noqa: N818 - a finding about its disk
    """A Triton's repository takes no files, or does not give them back: a full, read-only or broken disk."""


class Placement:
    """One Triton server, and its model repository as a folder. Belongs to one event loop."""

    def __init__(
        self,
        triton: TritonClient,
        objects: Objects,
        gates: Gates,
        monitoring: Monitoring,
        place: Triton,
        *,
        work_folder: Path,
        trial_s: float,
        choose_runtime: bool,
    ) -> None:
        """`place` is what is registered of it; `trial_s` is what a model's first load may take there.

        Without `choose_runtime`, the runtime of evaluations serves what has not been measured yet.
        """
        self._trial_s = trial_s
        self._triton = triton
        self._objects = objects
        self._gates = gates
        self._monitoring = monitoring
        self._place = place
        self._repository = Path(place.repository)
        self._work_folder = work_folder
        measured = GPU_RUNTIMES if place.gpu else RUNTIMES
        self._measures = choose_runtime
        self._runtimes = measured if choose_runtime else (EVALUATED_WITH,)
        self._probe_images: dict[str, bytes] = {}

    async def put(self, name: str, start_number: int, model: Model, *, anew: bool) -> tuple[Parity, str]:
        """Loads a model and replays test images: the comparison, and the key of the image for probes.

        Args:
            anew: unload and remove first what an earlier attempt may have left: it may be what fails.

        Raises:
            NotFoundError, DataLossError: of the model's files. ModelFailed. ImagesRefused, of the replay.
            TritonUnavailable, UnavailableError. RepositoryFailed.
        """
        await self._need_triton()
        async with self._folder(name, start_number) as folder:
            samples = await choose_samples(self._objects, model, folder)
            if anew:
                await self._clear(name, start_number)
            look_up = self._gates.settled if self._measures else self._gates.chosen
            chosen = await look_up(model.model_id, self._place)
            try:
                gate, probe_key = await self._try(name, start_number, model, folder, samples, chosen)
            except ImagesRefused:
                replays_total.labels(False).inc()
                raise
            disagreed: set[str] = set()
            while not gate.parity.ok and gate.choice.runtime != EVALUATED_WITH:
                disagreed.add(gate.choice.runtime)
                log.warning("runtime_disagrees", name=name, runtime=gate.choice.runtime, paired=gate.parity.paired)
                gate, probe_key = await self._try(name, start_number, model, folder, samples, fall_back(gate))
        await self._gates.keep(*known_name(name), self._place, gate)
        if gate.parity.ok and self._measures and (chosen is None or disagreed):
            await self._gates.choose(model.model_id, self._place, gate.choice, disagreed)
        replays_total.labels(gate.parity.ok).inc()
        return gate.parity, probe_key

    async def put_back(self, name: str, start_number: int, model: Model, *, anew: bool) -> None:
        """Unloads and loads what does not serve any more.

        Args:
            anew: write it anew, too: the disk may have lost something of it.

        Raises as put() does.
        """
        await self._need_triton()
        chosen = await self._gates.chosen(model.model_id, self._place)
        async with self._folder(name, start_number) as folder:
            if anew:
                await self._clear(name, start_number)
            else:
                await self._triton.unload(name, HEAL_DRAIN_S)
            runtimes = [chosen.runtime if chosen else EVALUATED_WITH]
            await self._load(name, start_number, model, folder, runtimes, self._place.copies)

    async def live(self) -> bool:
        """Whether the server answers."""
        return await self._triton.live()

    async def judge(self, name: str, start_number: int, probe_key: str, *, thoroughly: bool = False) -> str | None:
        """None if it serves, by a real inference of each of its copies, on average: it is Triton that chooses which.

        Args:
            thoroughly: so often that hardly one of several copies has not been asked.
        """
        image = await self._probe_image(probe_key)
        copies = self._place.copies
        for _ in range(PROBES_OF_A_COPY * copies if thoroughly and copies > 1 else copies):
            try:
                problem = await self._triton.probe(name, image, str(start_number), PROBE_TIMEOUT_S)
            except TritonUnavailable as error:
                problem = f"Triton does not answer: {error.reason}"
            probes_total.labels("bad" if problem else "good").inc()
            if problem is not None:
                return problem
        return None

    async def has(self, name: str, start_number: int) -> bool:
        """Whether Triton answers and has it loaded, well or not: after a restart it has none."""
        try:
            return await self._triton.ready(name, str(start_number))
        except TritonUnavailable:
            return False

    async def remove(self, name: str) -> None:
        """Unloads it and removes its folder. Raises ModelFailed, TritonUnavailable."""
        await self._triton.unload(name)
        await asyncio.to_thread(_remove_model, self._repository, name)

    async def remove_starts(self, name: str, start_numbers: set[int]) -> None:
        """Removes what former starts left on disk."""
        for start_number in start_numbers:
            await asyncio.to_thread(repository.remove_version, self._repository, name, start_number)

    async def held(self) -> dict[str, list[int]]:
        """By name: starts on disk of all that Triton or the repository has under names of ours.

        Raises TritonUnavailable.
        """
        loaded = [entry.model for entry in await self._triton.index() if entry.state not in ("", "UNAVAILABLE")]
        on_disk = await asyncio.to_thread(_starts, self._repository)
        names = sorted({*loaded, *on_disk})
        return {name: on_disk.get(name, []) for name in names if _NAME.fullmatch(name)}

    async def _clear(self, name: str, start_number: int) -> None:
        await self._triton.unload(name, HEAL_DRAIN_S)
        await _on_disk(repository.remove_version, self._repository, name, start_number)

    @asynccontextmanager
    async def _folder(self, name: str, start_number: int) -> AsyncIterator[Path]:
        folder = self._work_folder / f"{name}-{start_number}"
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _need_triton(self) -> None:
        """Raises UnavailableError before any work is done for a server that is not there."""
        if not await self._triton.live():
            raise UnavailableError("TRITON_UNAVAILABLE", "Triton does not answer.")

    async def _try(
        self,
        name: str,
        start_number: int,
        model: Model,
        folder: Path,
        samples: list[Sample],
        chosen: RuntimeChoice | None,
    ) -> tuple[Gate, str]:
        """Loads it with the chosen runtime, or with the one that its machine chooses, and replays."""
        copies = self._place.copies
        if chosen is None and copies > 1 and self._measures:
            # Several would measure each other's load, and each might choose another.
            await self._load(name, start_number, model, folder, self._runtimes, copies=1)
            chosen = explain((await self._triton.report(name, str(start_number))).choice)
        runtimes = [chosen.runtime] if chosen else self._runtimes
        input_size = await self._load(name, start_number, model, folder, runtimes, copies)
        report = await self._triton.report(name, str(start_number))
        await self._keep_lines(name, report.process, report.lines)
        found = report.choice
        # A machine that lacks the chosen runtime, or on which it does not load now, takes the one of evaluations.
        choice = chosen if chosen is not None and chosen.runtime == found.runtime else explain(found)
        compared, probe_key = await replay(
            self._triton,
            self._objects,
            samples,
            name,
            str(start_number),
            TOLERANCES[choice.runtime],
            input_size,
        )
        return make_gate(compared, choice), probe_key

    async def _load(
        self, name: str, start_number: int, model: Model, folder: Path, runtimes: Sequence[str], copies: int
    ) -> int:
        """Writes the model if it is not there, and loads it; the side of its input in pixels."""
        if start_number not in await _on_disk(repository.list_versions, self._repository, name):
            for file in repository.MODEL_FILES:
                if file not in model.files:
                    raise DataLossError("MODEL_FILE_MISSING", f"The model has no {file}.")
                key, sha256 = model.files[file]
                await self._objects.download(key, folder / file, sha256=sha256)
            await asyncio.to_thread(_check_classes, folder, model)
        written = await _on_disk(
            repository.write_version,
            self._repository,
            name,
            start_number,
            files=folder,
            serving_source=Path(serving.__path__[0]),
            config=config_pbtxt(
                name,
                version=start_number,
                instances=copies,
                gpu=self._place.gpu,
                threads=self._place.threads,
                trial_s=self._trial_s,
                runtimes=runtimes,
            ),
        )
        try:
            await self._triton.load(name)
        except ModelFailed as error:
            line = LogLine(1, "ERROR", f"did not load: {error.reason}", datetime.now(UTC))
            await self._keep_lines(name, new_id(), [line])
            raise
        return (await asyncio.to_thread(ModelSpec.load, written)).input_size

    async def _keep_lines(self, name: str, process: str, lines: Sequence[LogLine]) -> None:
        await self._monitoring.store_lines(*known_name(name), self._place.triton_id, process, lines)

    async def _probe_image(self, key: str) -> bytes:
        """The kept test image; a plain one while the object store does not give it: whether it serves, any shows."""
        known = self._probe_images.get(key)
        if known is not None:
            return known
        try:
            image = await self._objects.get(key, sha256=key.rpartition("/")[2])
        except DomainError as error:
            log.warning("probe_image_missing", key=key, error=error.message)
            return _PLAIN_IMAGE
        if len(self._probe_images) >= MAX_PROBE_IMAGES:
            self._probe_images.clear()
        self._probe_images[key] = image
        return image


async def _on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A call to the repository, in a thread. Raises RepositoryFailed for what its disk is to blame for."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise RepositoryFailed(error.errno, error.strerror) from error


def _check_classes(folder: Path, model: Model) -> None:
    """Labels are indices: answers are named by the classes that training told, so both must be the same."""
    try:
        classes = ModelSpec.load(folder).classes
    except ModelFolderError as error:
        raise DataLossError("MODEL_UNREADABLE", str(error)) from error
    if classes != model.classes:
        raise DataLossError("CLASSES_DIFFER", f"model.json has the classes {classes}, the model {model.classes}.")


def _starts(folder: Path) -> dict[str, list[int]]:
    return {name: repository.list_versions(folder, name) for name in repository.list_models(folder)}


def _remove_model(folder: Path, name: str) -> None:
    # At least once, which removes a folder without any version too.
    for version in repository.list_versions(folder, name) or [1]:
        repository.remove_version(folder, name, version)


def _plain_image() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(encoded, "PNG")
    return encoded.getvalue()


_PLAIN_IMAGE = _plain_image()
