"""What a user is to have of a run below their own prefix: copied after its end is committed, as it was accepted then.

1. All attempts of a run copy to the same place. One that copied before its end was accepted could lose the run
   meanwhile, and then lay its files over those that count; no check before the copy prevents that.
2. So RunEnded may be told a moment before the copies lie there. Saucer itself reads none of them.
3. FinishRun makes them before it answers. Of one that dies, or that the object store fails, any replica makes them once
   they are due. Twice is harmless, as the files that were accepted never change.
"""

from datetime import timedelta

from saucer.lib.objects import Objects
from saucer.lib.postgres import Database
from saucer.training import artifacts
from saucer.training.store import copies as store
from saucer.training.store.copies import Copy

COPY_EVERY_S = 5.0
# From then on whoever was at it is taken for dead.
CLAIM = timedelta(seconds=30)


async def make(database: Database, objects: Objects, copy: Copy) -> None:
    """Raises UnavailableError; it is due later then."""
    await artifacts.copy_out(objects, copy.files, copy.target)
    async with database.reading() as connection:
        await store.delete_copy(connection, copy)


async def make_due(database: Database, objects: Objects) -> bool:
    """One of those that are due; whether there was one. Raises UnavailableError."""
    async with database.reading() as connection:
        now = await database.clock.now(connection)
        copy = await store.claim_copy(connection, now, now + CLAIM)
    if copy is None:
        return False
    await make(database, objects, copy)
    return True
