"""import_images_per_s and import_memory_growth.

Ours is the whole import of a folder in the account's store, by dataset as it is wired with PostgreSQL, NATS and files,
from the call to its end. The reference reads each file, its header and its hash, and writes it under that hash.

Run as a program, `python -m tests.bench._importing SOURCE FOLDER`, it imports the source by a dataset of its own and
says the peak of resident memory, of the service and of the import's process together, in MB.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import nats as nats_client
import numpy as np
from PIL import Image

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.main import DatasetSettings, wire
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib import auth
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from tests.bench._servers import service_runner
from tests.bench.harness import Row, Say, compare
from tests.support.events import event, publish
from tests.support.services import Metadata, Tokens

IMAGES = 10_000
FEW, MANY = 1_000, 100_000
# Of a photograph's thumbnail, and of an image of which hardly anything is left but the file.
WIDTH, HEIGHT, TINY = 160, 120, 16
IMPORT_S = 1_800.0
POLL_S = 0.05
WATCH_S = 0.01


@dataclass(frozen=True)
class Importer:
    """A running dataset, and the folder of its store."""

    stub: "dataset_pb2_grpc.DatasetServiceAsyncStub"
    tokens: Tokens
    jetstream: nats_client.js.JetStreamContext
    store: Path
    database_url: str

    async def account(self) -> str:
        """A new one."""
        account_id = new_id()
        created = billing_events.AccountCreated(account=billing_pb2.Account(account_id=account_id))
        await publish(self.jetstream, event(created, "billing", account_id, None, account_id))
        return account_id

    async def import_s(self, source: Path, account_id: str | None = None) -> float:
        """Imports a folder; unless told otherwise into a new account, which has none of its images yet."""
        account_id = account_id or await self.account()
        metadata = self.tokens.metadata(auth.Role.EDITOR, account_id)
        place = self.store / "accounts" / account_id / "source"
        await asyncio.to_thread(place.parent.mkdir, parents=True, exist_ok=True)
        # By another process: the memory of a list of all files is none of the service's.
        copying = await asyncio.create_subprocess_exec("cp", "--archive", "--link", source, place)
        if await copying.wait() != 0:
            raise RuntimeError("The source could not be linked.")
        return await self._import_s(metadata)

    async def _import_s(self, metadata: Metadata) -> float:
        request = dataset_pb2.ImportDatasetRequest(request_id=new_id(), display_name="bench", store_path="source")
        while True:
            started = time.perf_counter()
            try:
                work = await self.stub.ImportDataset(request, metadata=metadata)
                break
            except Exception as error:
                if from_rpc(error).reason != "STORE_NOT_PROVEN":  # type: ignore[arg-type]
                    raise
                await asyncio.sleep(POLL_S)
        while work.state not in (dataset_pb2.IMPORT_STATE_SUCCEEDED, dataset_pb2.IMPORT_STATE_FAILED):
            if time.perf_counter() - started > IMPORT_S:
                raise TimeoutError("The import did not end.")
            await asyncio.sleep(POLL_S)
            work = await self.stub.GetImport(dataset_pb2.GetImportRequest(import_id=work.import_id), metadata=metadata)
        if work.state != dataset_pb2.IMPORT_STATE_SUCCEEDED or work.report.counts:
            raise RuntimeError(f"{work.error_reason} {work.report}")
        return time.perf_counter() - started


@contextlib.asynccontextmanager
async def importer(folder: Path) -> AsyncIterator[Importer]:
    """A dataset with servers of its own, which keep their data below `folder`."""
    async with service_runner(folder) as run:
        client = await nats_client.connect(run.nats_url)
        database_url = await run.new_database()
        settings = {
            "database_url": database_url,
            "object_store_url": f"file://{folder / 'objects'}",
            "work_folder": folder / "work",
        }
        async with run("dataset", DatasetSettings, wire, **settings) as running:
            stub = dataset_pb2_grpc.DatasetServiceStub(running.channel)
            yield Importer(stub, run.tokens, client.jetstream(), folder / "objects", database_url)
        await client.close()


def write_images(folder: Path, count: int, width: int, height: int) -> Path:
    """A COCO folder of different images with two boxes each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(1, count + 1):
        coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        coarse[0, 0] = number & 255, number >> 8 & 255, number >> 16
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / "images" / f"{number}.jpg"), pixels)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for corner in (1, 4):
            box = [corner, corner, 8, 7]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def copy_s(source: Path, target: Path) -> float:
    """Every file's header and hash, and a copy under the hash. They stay: of files that were just deleted ext4 passes
    each one over for whoever makes a new one, which made the next round up to five times as slow.
    """
    target.mkdir()
    started = time.perf_counter()
    for file in (source / "images").iterdir():
        data = file.read_bytes()
        with Image.open(file) as image:
            image.size  # noqa: B018 - reads the header
        (target / hashlib.sha256(data).hexdigest()).write_bytes(data)
    return time.perf_counter() - started


async def measure(folder: Path, say: Say) -> list[Row]:
    """The two rows."""
    source = await asyncio.to_thread(write_images, folder / "small", IMAGES, WIDTH, HEIGHT)
    numbers = itertools.count(1)
    async with importer(folder / "service") as ours:

        async def ours_per_s() -> float:
            return IMAGES / await ours.import_s(source)

        async def copies_per_s() -> float:
            return IMAGES / await asyncio.to_thread(copy_s, source, folder / f"copies-{next(numbers)}")

        speed = await compare("import_images_per_s", "1/s", ">= 0.5", ours=ours_per_s, reference=copies_per_s, say=say)
    return [speed, await asyncio.to_thread(_memory, folder, say)]


def _memory(folder: Path, say: Say) -> Row:
    """One run of each: memory does not drift as time does."""
    peak_mb = {}
    for count in (FEW, MANY):
        source = write_images(folder / f"of-{count}", count, TINY, TINY)
        command = (sys.executable, "-m", "tests.bench._importing", str(source), str(folder / f"service-{count}"))
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peak_mb[count] = float(output.split()[-1])
        say(f"import_memory_growth: {peak_mb[count]:.0f} MB at {count} images")
    ratio = peak_mb[MANY] / peak_mb[FEW]
    return Row("import_memory_growth", peak_mb[MANY], peak_mb[FEW], "MB", ratio, "<= 1.3")


def _peak_mb(process: str) -> float:
    """Of a process's resident memory since its program began; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _import_peak_mb() -> float:
    """Of the import's process, found by its name and its parent; 0 while there is none."""
    found = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
            if ours and b"import_child" in (process / "cmdline").read_bytes():
                found = max(found, _peak_mb(process.name))
    return found


async def _watch(peaks_mb: dict[str, float]) -> None:
    while True:
        peaks_mb["import"] = max(peaks_mb["import"], await asyncio.to_thread(_import_peak_mb))
        await asyncio.sleep(WATCH_S)


async def _import_once(source: Path, folder: Path) -> None:
    peaks_mb = {"import": 0.0}
    watching = asyncio.create_task(_watch(peaks_mb))
    async with importer(folder) as ours:
        await ours.import_s(source)
    watching.cancel()
    peaks_mb["service"] = _peak_mb("self")
    print(peaks_mb, file=sys.stderr)
    print(sum(peaks_mb.values()))


if __name__ == "__main__":
    asyncio.run(_import_once(Path(sys.argv[1]), Path(sys.argv[2])))
