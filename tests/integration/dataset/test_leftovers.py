"""What failed imports leave is removed while no import of the account counts on it, and room is shared out exactly."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from saucer.dataset.domain import MAX_WAIT, Import, ImportFailedError, ImportRequest, ImportState
from saucer.dataset.service import Datasets, leftovers
from saucer.dataset.service.leftovers import HOLD
from saucer.dataset.storage import ROOM_BYTES, images_prefix
from saucer.dataset.work import remove_leftovers
from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.claims import ClaimLostError
from saucer.lib.clock import ManualClock
from saucer.lib.errors import UnavailableError
from saucer.lib.ids import new_id
from saucer.lib.objects import Listed, Objects, sha256_of
from saucer.lib.postgres import connect, migrate
from tests.support.servers import NewDatabase

CLAIM = timedelta(seconds=30)
IMAGE = b"image"
BROKEN = ImportFailedError("BROKEN", "It broke.")


class HookedObjects(Objects):
    """Does something before each removal, if asked."""

    hook: Callable[[], Awaitable[None]] | None = None

    async def delete(self, key: str) -> None:
        if self.hook is not None:
            await self.hook()
        await super().delete(key)


class Lab:
    """The use cases, of one account whose store is proven."""

    def __init__(self, datasets: Datasets, objects: HookedObjects, clock: ManualClock) -> None:
        self.datasets = datasets
        self.objects = objects
        self.clock = clock
        self.account_id = new_id()

    async def meet(self) -> None:
        await self.datasets.stores.meet(self.account_id)
        await self.datasets.stores.prove(self.account_id, new_id())

    async def queue(self) -> Import:
        return await self.datasets.imports.create(new_id(), ImportRequest(self.account_id, "Mine", None, "folder", 0))

    async def claim(self) -> Import:
        work = await self.datasets.imports.claim(new_id())
        assert work is not None
        return work

    async def store(self, work: Import) -> None:
        await self.datasets.imports.reserve(work, len(IMAGE))
        await self.objects.put(self.key, IMAGE)
        await self.datasets.imports.stored(work, len(IMAGE))

    async def fail_one(self) -> None:
        """An import that has stored the image."""
        await self.queue()
        work = await self.claim()
        await self.store(work)
        await self.datasets.imports.fail(work, BROKEN)

    @property
    def key(self) -> str:
        return f"{images_prefix(self.account_id)}/{sha256_of(IMAGE)}"

    async def is_there(self) -> bool:
        return await self.objects.exists(self.key)


@pytest.fixture
async def lab(new_database: NewDatabase, tmp_path: Path) -> AsyncIterator[Lab]:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib", "saucer.dataset")
    objects = HookedObjects(f"file://{tmp_path}")
    lab = Lab(Datasets(database, objects, claim=CLAIM), objects, clock)
    await lab.meet()
    yield lab
    await database.pool.close()


async def test_nothing_is_removed_while_an_import_is_claimed_even_if_its_claim_has_expired(lab: Lab) -> None:
    await lab.queue()
    other = await lab.claim()
    await lab.fail_one()
    for _ in range(2):
        assert await lab.datasets.leftovers.due() == []
        assert not await lab.datasets.leftovers.remove(lab.account_id, new_id())
        lab.clock.advance(2 * CLAIM)
    await lab.datasets.imports.prolong(other.claim_token or "", images_done=0, images_total=0)
    await lab.datasets.imports.give_back(other, timedelta(0))
    assert await lab.is_there()
    assert await lab.datasets.leftovers.due() == [lab.account_id]
    assert await lab.datasets.leftovers.remove(lab.account_id, new_id())
    assert not await lab.is_there()


async def test_no_import_is_claimed_while_leftovers_are_removed_or_can_be(lab: Lab) -> None:
    await lab.fail_one()
    await lab.queue()
    assert await lab.datasets.imports.claim(new_id()) is None
    claimed = []

    async def claim() -> None:
        claimed.append(await lab.datasets.imports.claim(new_id()))

    lab.objects.hook = claim
    assert await lab.datasets.leftovers.remove(lab.account_id, new_id())
    assert claimed == [None]
    work = await lab.claim()
    await lab.store(work)
    assert await lab.is_there()


async def test_an_import_that_stored_nothing_leaves_nothing(lab: Lab) -> None:
    await lab.queue()
    await lab.datasets.imports.fail(await lab.claim(), BROKEN)
    assert await lab.datasets.leftovers.due() == []


async def test_a_removal_that_broke_off_is_taken_over_when_its_hold_ends(lab: Lab) -> None:
    await lab.fail_one()
    await lab.queue()

    async def silent() -> None:
        raise UnavailableError("STORE_UNAVAILABLE", "The object store is silent.")

    lab.objects.hook = silent
    with pytest.raises(UnavailableError):
        await lab.datasets.leftovers.remove(lab.account_id, new_id())
    lab.objects.hook = None
    assert await lab.datasets.leftovers.due() == []
    assert await lab.datasets.imports.claim(new_id()) is None
    lab.clock.advance(HOLD)
    assert await lab.datasets.leftovers.due() == [lab.account_id]
    assert await lab.datasets.leftovers.remove(lab.account_id, new_id())
    assert not await lab.is_there()
    await lab.claim()


async def test_an_import_ends_that_waited_too_long_for_leftovers_which_cannot_be_removed(lab: Lab) -> None:
    await lab.fail_one()
    work = await lab.queue()
    lab.clock.advance(MAX_WAIT)
    assert not await lab.datasets.imports.end_overdue()
    lab.clock.advance(timedelta(seconds=1))
    assert await lab.datasets.imports.claim(new_id()) is None
    assert await lab.datasets.imports.end_overdue()
    assert not await lab.datasets.imports.end_overdue()
    set_current(Principal("tester", Role.EDITOR, lab.account_id, "t", float("inf")))
    ended = await lab.datasets.imports.get(work.import_id)
    assert (ended.state, ended.error_reason) == (ImportState.FAILED, "WAITED_TOO_LONG")


async def test_an_import_that_is_claimed_does_not_wait(lab: Lab) -> None:
    await lab.queue()
    await lab.claim()
    lab.clock.advance(2 * MAX_WAIT)
    assert not await lab.datasets.imports.end_overdue()


async def test_leftovers_that_cannot_be_removed_do_not_keep_those_of_other_accounts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.fail_one()
    lab.clock.advance(timedelta(seconds=1))
    other = Lab(lab.datasets, lab.objects, lab.clock)
    await other.meet()
    await other.fail_one()
    assert await lab.datasets.leftovers.due() == [lab.account_id, other.account_id]

    def listed(prefix: str) -> AsyncIterator[Listed]:
        if prefix == images_prefix(lab.account_id):
            raise UnavailableError("STORE_UNAVAILABLE", "The object store does not list it.")
        return Objects.listed(lab.objects, prefix)

    monkeypatch.setattr(lab.objects, "listed", listed)
    await remove_leftovers(lab.datasets)
    assert await lab.is_there()
    assert not await other.is_there()


async def test_a_removal_whose_hold_was_taken_over_removes_nothing_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "HELD_FOR_S", 0.0)
    monkeypatch.setattr(leftovers, "REMOVALS_AT_ONCE", 1)
    await lab.fail_one()
    await lab.objects.put(f"{images_prefix(lab.account_id)}/{sha256_of(b'another')}", b"another")

    async def frozen() -> None:
        lab.objects.hook = None
        lab.clock.advance(HOLD)
        assert await lab.datasets.leftovers.remove(lab.account_id, new_id())
        await lab.queue()
        await lab.store(await lab.claim())
        await lab.objects.put(f"{images_prefix(lab.account_id)}/{sha256_of(b'another')}", b"another")

    lab.objects.hook = frozen
    with pytest.raises(ClaimLostError):
        await lab.datasets.leftovers.remove(lab.account_id, new_id())
    assert len(await lab.objects.keys(images_prefix(lab.account_id))) == 1, "the one whose removal was on its way"


async def test_room_is_shared_out_between_imports_and_comes_back_with_their_claims(lab: Lab) -> None:
    imports = lab.datasets.imports
    await lab.datasets.stores.set_quota(lab.account_id, ROOM_BYTES + 10, 1)
    await lab.queue()
    await lab.queue()
    first, second = await lab.claim(), await lab.claim()
    assert await imports.reserve(first, 6) == ROOM_BYTES
    assert await imports.reserve(second, 4) == 10
    for work in (first, second):
        with pytest.raises(ImportFailedError, match="has room for"):
            await imports.reserve(work, 1)
    await imports.stored(first, 6)
    assert await imports.reserve(second, ROOM_BYTES - 6) == ROOM_BYTES - 6
    await imports.give_back(second, timedelta(0))
    assert await imports.reserve(first, 4) == ROOM_BYTES
    assert await imports.reserve(first, 4) == 4
    lab.clock.advance(2 * CLAIM)
    again = await lab.claim()
    assert again.import_id == first.import_id
    assert await imports.reserve(again, ROOM_BYTES + 4) == ROOM_BYTES + 4, "a lost claim has lost its room"
    with pytest.raises(ClaimLostError):
        await imports.reserve(first, 1)
    await lab.datasets.stores.set_quota(lab.account_id, None, 2)
    assert await imports.reserve(again, 1) is None
