"""Does the imports: claims one, brings its source here, imports it in a child process, stores what came of it.

1. A claim expires unless it is prolonged, so the import of a process that was killed is taken up by the next one. A
   stop gives the claim back at once.
2. Everything on the way can be done twice: images are stored under their hash and manifests under version and hash,
   and the version's id is derived from the import's. What was stored for an import that then failed, and no version
   names, is removed soon after: see service/leftovers.py.
3. Only the transaction that ends the import, guarded by the claim, makes the version: nothing is half imported.
4. Of an import this process holds at most STORES_AT_ONCE images at a time; what the child may take is a setting.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import asyncpg
import structlog
from prometheus_client import Counter, Gauge, Histogram

from saucer.dataset.archive import MAX_UNPACKED_BYTES, safe_parts
from saucer.dataset.domain import DatasetVersion, Import, Imported, ImportFailedError, Json
from saucer.dataset.import_job import MAX_IMAGE_BYTES, ImportJob
from saucer.dataset.import_process import AcceptedImage, run_child
from saucer.dataset.layout import NotInFolderError, open_below, read_at_most
from saucer.dataset.listing import write_listing_of
from saucer.dataset.service import Datasets
from saucer.dataset.sources import fetch, room
from saucer.dataset.storage import NoRoomError, Room, images_prefix
from saucer.lib.bounded import Bounded
from saucer.lib.claims import ClaimLostError, while_held, work_off
from saucer.lib.confined import ChildDiedError
from saucer.lib.confinement import ChildLimits
from saucer.lib.errors import DataLossError, NotFoundError, ResourceExhaustedError, UnavailableError
from saucer.lib.ids import derived_id, new_id
from saucer.lib.objects import Objects, sha256_of, system_prefix
from saucer.lib.rounds import INTERRUPTIONS

# Of an import that the object store or PostgreSQL interrupted.
RETRY_IMPORT = timedelta(seconds=10)
# How often a claim is prolonged and progress shown, at most; a short claim is prolonged three times in its life.
PROGRESS_S = 1.0
# To give a claim back at a stop; if PostgreSQL takes longer, the claim expires instead.
GIVE_BACK_S = 2.0
HOUSEKEEPING_S = 5.0
# Queued imports of an account may wait for it.
LEFTOVERS_S = 1.0
STORES_AT_ONCE = 8
# A loop goes on after these,
_TRANSIENT = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, UnavailableError)
# and an import is tried again after these, however often: it is not their cause.
_INTERRUPTIONS = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.InterfaceError,
    OSError,
    UnavailableError,
)
# In an import's folder: the rows of its images.
LISTING = "listing"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLAIM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

log = structlog.get_logger()
imports_running = Gauge("saucer_dataset_imports_running", "Imports in progress in this process")
import_seconds = Histogram(
    "saucer_dataset_import_seconds", "Of one import, from claim to end", buckets=(1, 3, 10, 30, 100, 300, 1000, 3000)
)
images_stored_total = Counter("saucer_dataset_images_stored_total", "Images of imports", ["outcome"])


@dataclass
class _Progress:
    images_done: int = 0
    images_total: int = 0

    def show(self, done: int, total: int) -> None:
        self.images_done, self.images_total = done, total


class ImportWorker:
    """One import at a time; a process may have several."""

    def __init__(
        self,
        datasets: Datasets,
        objects: Objects,
        work_folder: Path,
        limits: ChildLimits,
        claim: timedelta,
    ) -> None:
        """Below `work_folder` each claim has a folder of its own, named by its token; replicas may share it."""
        self._datasets = datasets
        self._objects = objects
        self._folders = work_folder
        self._limits = limits
        self._claim_s = claim.total_seconds()

    async def run(self) -> None:
        """Until cancelled."""
        await work_off(self._datasets.imports.claim, self._do, self._datasets.imports.queued, _TRANSIENT)

    async def _do(self, work: Import) -> None:
        """One claimed import, to its end or back to the queue. Raises ClaimLostError."""
        log.info("import_begins", import_id=work.import_id, attempt=work.attempts)
        assert work.claim_token is not None
        folder = self._folders / work.claim_token
        progress = _Progress()
        try:
            with imports_running.track_inprogress(), import_seconds.time():
                version, report = await self._while_held(work, folder, progress)
            await self._datasets.imports.succeed(work, version, folder / LISTING, report, images=progress.images_total)
        except ImportFailedError as error:
            await self._datasets.imports.fail(work, error)
        except ClaimLostError:
            raise
        except _INTERRUPTIONS as error:
            log.warning("import_interrupted", import_id=work.import_id, error=repr(error))
            await self._datasets.imports.give_back(work, RETRY_IMPORT)
        except asyncio.CancelledError:
            with suppress(ClaimLostError, *_TRANSIENT):
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._datasets.imports.give_back(work, timedelta(0))
            raise
        except Exception:
            # The child's death, or a fault of ours that this import brings out: not again and again, and no other
            # import must wait for it.
            log.exception("import_crashed", import_id=work.import_id)
            await self._datasets.imports.crash(work)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _while_held(self, work: Import, folder: Path, progress: _Progress) -> tuple[DatasetVersion, Json]:
        """Nothing is left in `folder` after a failure, before anybody can hear of it."""
        token = work.claim_token
        assert token is not None
        try:
            return await while_held(
                self._make(work, folder, progress),
                lambda: self._datasets.imports.prolong(
                    token, images_done=progress.images_done, images_total=progress.images_total
                ),
                claim_s=self._claim_s,
                every_s=min(PROGRESS_S, self._claim_s / 3),
                transient=_TRANSIENT,
            )
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    async def _make(self, work: Import, folder: Path, progress: _Progress) -> tuple[DatasetVersion, Json]:
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True)
        source = folder / "source"
        if work.draft_id is not None:
            await self._datasets.labelling.write_draft(work, source)
        else:
            source = await fetch(work, self._datasets, self._objects, source)
        prefix = images_prefix(work.account_id)
        job = await self._job(work, folder, source)
        images_folder = Path(job.source if source.is_dir() else job.unpacked)
        stored = Room()
        try:
            async with Bounded(STORES_AT_ONCE) as stores:
                imported = await run_child(
                    job,
                    self._limits,
                    images=lambda images: stores.start(self._store_images(work, images_folder, prefix, images, stored)),
                    progress=progress.show,
                )
        finally:
            if taken_bytes := stored.close():
                await self._datasets.imports.stored(work, taken_bytes)
        return await self._version(work, imported, folder / "manifest.json", prefix), imported.report

    async def _job(self, work: Import, folder: Path, source: Path) -> ImportJob:
        return ImportJob(
            source=str(source),
            unpacked=str(folder / "unpacked"),
            manifest=str(folder / "manifest.json"),
            listing=str(folder / LISTING),
            seed=work.split_seed,
            source_format=work.source_format,
            max_unpacked_bytes=min(MAX_UNPACKED_BYTES, await asyncio.to_thread(room, folder)),
        )

    async def _store_images(
        self, work: Import, folder: Path, prefix: str, images: Sequence[AcceptedImage], room: Room
    ) -> None:
        """Raises ImportFailedError as read_accepted() does, and QUOTA_STORAGE; ChildDiedError, UnavailableError."""
        while images:
            storing = asyncio.ensure_future(asyncio.to_thread(self._store_while_room, folder, prefix, images, room))
            try:
                done, wanted_bytes = await asyncio.shield(storing)
            except asyncio.CancelledError:
                # The thread goes on with the image that it has: nothing is stored after the import's end.
                room.close()
                await asyncio.gather(storing, return_exceptions=True)
                raise
            images = images[done:]
            if images:
                async with room.growing:
                    if not room.fits(wanted_bytes):
                        room.grow(await self._datasets.imports.reserve(work, wanted_bytes))

    def _store_while_room(
        self, folder: Path, prefix: str, images: Sequence[AcceptedImage], room: Room
    ) -> tuple[int, int]:
        """How many of the images are done, and the size of the next one, for which there is no room.

        Blocks: for a thread. Only what has the hash that was said is stored, below a key of that hash.
        """
        done, stored, wanted_bytes = 0, 0, 0
        for image in images:
            if not _SHA256.fullmatch(image.sha256):
                raise ChildDiedError("the import said what is no hash")
            try:
                read = partial(read_accepted, folder, image, room)
                stored += self._objects.put_if_missing(f"{prefix}/{image.sha256}", read)
            except NoRoomError as error:
                wanted_bytes = error.size_bytes
                break
            done += 1
        images_stored_total.labels("stored").inc(stored)
        images_stored_total.labels("there").inc(done - stored)
        return done, wanted_bytes

    async def _version(self, work: Import, imported: Imported, manifest: Path, image_prefix: str) -> DatasetVersion:
        former = await self._datasets.versions.of_content(work.account_id, imported.content_hash)
        if former is not None:
            return former
        version_id = derived_id("dataset_version", work.import_id)
        # The hash in the key: where two processes believed to hold the import, neither overwrites the other's manifest.
        key = f"{system_prefix(work.account_id)}/datasets/{version_id}/manifest-{imported.manifest_sha256}.json"
        if await self._objects.put(key, manifest) != imported.manifest_sha256:
            raise DataLossError("CHECKSUM_MISMATCH", "The manifest is not what the child has written.", key=key)
        return DatasetVersion(
            dataset_version_id=version_id,
            account_id=work.account_id,
            display_name=work.display_name,
            content_hash=imported.content_hash,
            manifest_key=key,
            manifest_sha256=imported.manifest_sha256,
            image_prefix=image_prefix,
            label_kind=imported.label_kind,
            classes=imported.classes,
            statistics=imported.statistics,
            created_at=work.created_at,  # succeed() sets it
            revision=1,
        )


def read_accepted(folder: Path, image: AcceptedImage, room: Room) -> bytes:
    """Its bytes, which have the hash that was said, and for which there is room.

    Raises:
        ImportFailedError: SOURCE_CHANGED. ChildDiedError: the path leads out of the folder. NoRoomError.
    """
    parts = safe_parts(image.path)
    if not parts:
        raise ChildDiedError("the import said a path that leads out of its folder")
    try:
        with open_below(folder, parts) as file:
            data = read_at_most(file, MAX_IMAGE_BYTES)
    except NotInFolderError as error:
        raise _changed() from error
    if sha256_of(data) != image.sha256:
        raise _changed()
    room.take(len(data))
    return data


def _changed() -> ImportFailedError:
    return ImportFailedError(
        "SOURCE_CHANGED", "The folder was changed while it was imported; import it again when nobody writes there."
    )


async def prove_stores(datasets: Datasets) -> None:
    """A round: those that could not be proven yet."""
    for account_id in await datasets.stores.unproven():
        await datasets.stores.prove(account_id, new_id())


async def count_stored(datasets: Datasets) -> None:
    """A round: what was stored before there was a count."""
    for account_id in await datasets.stores.uncounted():
        await datasets.stores.count(account_id)


async def remove_leftovers(datasets: Datasets) -> None:
    """One round, of every account for which it can be done now; one that fails keeps no other.

    Raises what PostgreSQL raises where it cannot tell the accounts.
    """
    for account_id in await datasets.leftovers.due():
        try:
            await datasets.leftovers.remove(account_id, new_id())
        except ClaimLostError:
            continue
        except INTERRUPTIONS as error:
            log.warning("leftovers_not_removed", account_id=account_id, error=repr(error))


async def list_former_images(datasets: Datasets, objects: Objects, work_folder: Path) -> None:
    """Lists the images of versions that were imported before there were such lists; returns when none is left."""
    left = True
    while left:
        try:
            left = await _list_former_images(datasets, objects, work_folder)
        except INTERRUPTIONS as error:
            log.warning("round_interrupted", work="former_images", error=repr(error))
        await asyncio.sleep(HOUSEKEEPING_S)


async def _list_former_images(datasets: Datasets, objects: Objects, work_folder: Path) -> bool:
    """Of a batch of versions; false: of none."""
    listed = 0
    for version in await datasets.versions.unlisted():
        try:
            manifest = await objects.get(version.manifest_key, sha256=version.manifest_sha256)
        except (NotFoundError, DataLossError, ResourceExhaustedError) as error:
            log.warning("images_not_listed", dataset_version_id=version.dataset_version_id, error=str(error))
            continue
        with NamedTemporaryFile(dir=work_folder, prefix="listing-") as file:
            listing = Path(file.name)
            await asyncio.to_thread(write_listing_of, listing, manifest, version.label_kind)
            await datasets.versions.list_images_of(version, listing)
        listed += 1
    return listed > 0


async def sweep_folders(datasets: Datasets, work_folder: Path) -> None:
    """A round: removes the folders of claims that have ended. A claim is in the database before its folder is made."""
    names = [name for name in await asyncio.to_thread(os.listdir, work_folder) if _CLAIM.fullmatch(name)]
    live = await datasets.imports.live_claims(names)
    for name in names:
        if name not in live:
            await asyncio.to_thread(shutil.rmtree, work_folder / name, ignore_errors=True)
