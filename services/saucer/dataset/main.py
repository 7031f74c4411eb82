"""Wires dataset, top to bottom."""

from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic import Field

from saucer.dataset import consumers, rpc
from saucer.dataset.import_process import FILE_BYTES, MEMORY_BYTES, TIME_LIMIT_S
from saucer.dataset.service import Datasets
from saucer.dataset.work import (
    HOUSEKEEPING_S,
    LEFTOVERS_S,
    ImportWorker,
    count_stored,
    list_former_images,
    prove_stores,
    remove_leftovers,
    sweep_folders,
)
from saucer.lib.config import ServiceSettings
from saucer.lib.confinement import ChildLimits
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run


class DatasetSettings(ServiceSettings):
    """What dataset needs besides."""

    # file:///folder, s3://bucket/prefix.
    object_store_url: str
    # Scratch for imports: sources, what they unpack to, images on their way. Replicas may share it.
    work_folder: Path
    # In this process; each is a child process on one core.
    imports_at_once: int = Field(default=1, ge=1, le=16)
    # How long the import of a process that was killed waits to be taken up.
    import_claim_s: float = Field(default=30.0, gt=0)
    # An upload is removed so long after its last chunk, and an hour after an import of it has ended.
    uploads_keep_hours: int = Field(default=24, ge=1, le=24 * 30)
    import_time_limit_s: float = Field(default=TIME_LIMIT_S, gt=0)
    # Of one import's child process; Python and its libraries alone take half of the least.
    import_memory_bytes: int = Field(default=MEMORY_BYTES, ge=512 * 1024**2)


async def wire(process: Process, settings: DatasetSettings) -> None:
    """Database, events in and out, imports, gRPC."""
    database = await process.database(settings, "saucer.dataset")
    jetstream = await process.jetstream(settings)
    process.relay(database, jetstream)
    process.retention(settings, database)
    process.gauges(database)
    objects = Objects(settings.object_store_url)
    claim = timedelta(seconds=settings.import_claim_s)
    datasets = Datasets(database, objects, claim=claim, uploads_keep=timedelta(hours=settings.uploads_keep_hours))
    dead_events = process.consumer(database, jetstream, consumers.handlers(datasets))
    # Resolved: an import's child works in a folder of its own.
    folder = settings.work_folder.resolve() / "imports"
    folder.mkdir(parents=True, exist_ok=True)
    limits = ChildLimits(settings.import_memory_bytes, FILE_BYTES, settings.import_time_limit_s)
    for number in range(settings.imports_at_once):
        worker = ImportWorker(datasets, objects, folder, limits, claim)
        process.background(f"imports-{number}", worker.run())
    process.rounds("proofs", partial(prove_stores, datasets), HOUSEKEEPING_S)
    process.rounds("counts", partial(count_stored, datasets), HOUSEKEEPING_S)
    process.rounds("overdue_imports", datasets.imports.end_overdue, HOUSEKEEPING_S)
    process.rounds("uploads", datasets.uploads.sweep, HOUSEKEEPING_S)
    process.rounds("folders", partial(sweep_folders, datasets, folder), HOUSEKEEPING_S)
    process.rounds("leftovers", partial(remove_leftovers, datasets), LEFTOVERS_S)
    process.background("former_images", list_former_images(datasets, objects, folder))
    await process.serve(settings, [rpc.servicer(datasets), dead_events], database)


def main() -> None:
    """Runs until it is told to stop."""
    run("dataset", DatasetSettings, wire)


if __name__ == "__main__":
    main()
