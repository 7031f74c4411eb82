"""What attempts left in the object store and nothing names: removed some days after their run has ended.

The files of a deleted model likewise, some days after the deletion, so that what had begun with it is done by then.

1. Only runs that ended days ago are looked at: a worker that lost its lease has long stopped writing.
2. Named are the model or the detections that the last attempt finished with, and the checkpoint of the task's newest
   run that a worker began, from which its next start resumes; none of a task that has succeeded or was deleted, as that
   is not started again. A start that is made in the same moment takes that very checkpoint.
3. A run is marked after its files are gone, so that a round that breaks off is made again. Several replicas may make
   one at once.
"""

from datetime import timedelta

import structlog
from prometheus_client import Counter

from saucer.lib.objects import Objects
from saucer.lib.postgres import Database
from saucer.training.store import leftovers as store
from saucer.training.store.leftovers import Left

REMOVE_EVERY_S = 3600.0
# Tasks looked at together; the next follow at once.
BATCH = 100

log = structlog.get_logger()
removed_total = Counter(
    "saucer_training_objects_removed_total", "Objects of attempts that nothing named, and of deleted models"
)


async def remove_all(database: Database, objects: Objects, keep: timedelta) -> None:
    """One round of both. Raises UnavailableError, what PostgreSQL raises."""
    await remove_leftovers(database, objects, keep)
    await remove_deleted_models(database, objects, keep)


async def remove_leftovers(database: Database, objects: Objects, keep: timedelta) -> None:
    """One round, of runs that ended `keep` ago. Raises UnavailableError."""
    number = BATCH
    while number == BATCH:
        async with database.reading() as connection:
            before = await database.clock.now(connection) - keep
            unswept = await store.unswept_tasks(connection, before, BATCH)
            tasks = [await store.runs_of(connection, task_id) for task_id in unswept]
        for runs in tasks:
            old = [run for run in runs if run.ended_at is not None and run.ended_at < before]
            newest = next((run for run in reversed(runs) if run.begun), None)
            checkpoint_key = newest.checkpoint_key if newest is not None and newest.resumable else None
            for run in old:
                await _remove(objects, run, checkpoint_key)
            async with database.reading() as connection:
                await store.mark_swept(connection, old, await database.clock.now(connection))
        number = len(tasks)


async def remove_deleted_models(database: Database, objects: Objects, keep: timedelta) -> None:
    """One round, of models that were deleted `keep` ago and that nothing uses. Raises UnavailableError."""
    number = BATCH
    while number == BATCH:
        async with database.reading() as connection:
            before = await database.clock.now(connection) - keep
            models = await store.removable_models(connection, before, BATCH)
        for model_id, keys in models:
            for key in keys:
                await objects.delete(key)
                removed_total.inc()
            async with database.reading() as connection:
                await store.mark_removed(connection, model_id, await database.clock.now(connection))
        number = len(models)


async def _remove(objects: Objects, run: Left, checkpoint_key: str | None) -> None:
    for key in await objects.keys(run.prefix):
        if not is_named(key, run, checkpoint_key):
            await objects.delete(key)
            removed_total.inc()


def is_named(key: str, run: Left, checkpoint_key: str | None) -> bool:
    """Whether an object of a run that has ended may be asked for; `checkpoint_key` is what the next start takes."""
    finished_with = run.finished_with_files and key.rpartition("/")[0] == f"{run.prefix}/attempt-{run.attempt}"
    return finished_with or key == checkpoint_key
