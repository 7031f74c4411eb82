"""What an account may store: uploads are refused, and imports end, beyond the quota that billing tells."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import asyncpg
import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.v1 import dataset_pb2
from saucer.dataset.work import HOUSEKEEPING_S
from saucer.lib.grpc_client import from_rpc
from tests.integration.dataset.client import Client, client, coco_files, write_files
from tests.integration.dataset.conftest import NewAccount, RunDataset
from tests.support.events import event, publish, until
from tests.support.services import Tokens
from tests.support.shapes import write_shapes

SUCCEEDED, FAILED = dataset_pb2.IMPORT_STATE_SUCCEEDED, dataset_pb2.IMPORT_STATE_FAILED


class Quota:
    """Of a caller's account."""

    def __init__(self, jetstream: JetStreamContext, database: asyncpg.Connection, caller: Client) -> None:
        self.jetstream = jetstream
        self.database = database
        self.caller = caller

    async def allow(self, storage_bytes: int, revision: int) -> None:
        account_id = self.caller.account_id
        quotas = billing_pb2.AccountQuotas(
            account_id=account_id, weight=1, storage_bytes=storage_bytes, revision=revision
        )
        changed = billing_events.AccountQuotasChanged(quotas=quotas)
        await publish(self.jetstream, event(changed, "billing", account_id, None, account_id))
        query = "SELECT quota_revision = $2 FROM account_store WHERE account_id = $1"
        await until(lambda: self.database.fetchval(query, account_id, revision))

    async def cleared(self) -> int:
        """The bytes that count, once nothing is left of imports that failed."""
        query = "SELECT NOT leftovers FROM account_store WHERE account_id = $1"
        await until(lambda: self.database.fetchval(query, self.caller.account_id))
        counted = "SELECT stored_bytes FROM account_store WHERE account_id = $1"
        return int(await self.database.fetchval(counted, self.caller.account_id))

    def place(self, path: str, files: Mapping[str, bytes]) -> set[str]:
        """Files to import; the hashes of the images."""
        write_files(self.caller.store / "accounts" / self.caller.account_id / path, files)
        return {hashlib.sha256(data).hexdigest() for name, data in files.items() if name.endswith(".png")}

    def stored(self) -> dict[str, int]:
        """Sizes of the images that lie in the account's store."""
        folder = self.caller.store / "system" / self.caller.account_id / "images"
        return {file.name: file.stat().st_size for file in folder.iterdir()}


@pytest.fixture
async def quota(
    run_dataset: RunDataset,
    database_url: str,
    tokens: Tokens,
    new_account: NewAccount,
    store: Path,
    jetstream: JetStreamContext,
) -> AsyncIterator[Quota]:
    """With a dataset service that makes two imports at once."""
    database = await asyncpg.connect(database_url)
    async with run_dataset(database_url=database_url, imports_at_once=2) as running:
        yield Quota(jetstream, database, client(running.channel, tokens, await new_account(), store))
    await database.close()


def image_bytes(files: Mapping[str, bytes]) -> int:
    return sum(len(data) for name, data in files.items() if name.endswith(".png"))


async def test_a_failed_import_uses_up_no_storage_and_a_smaller_one_fits_at_once(quota: Quota) -> None:
    large, small = coco_files(12, seed=1), coco_files(4, seed=2)
    quota.place("large", large)
    names = quota.place("small", small)
    await quota.allow(image_bytes(large) // 2, 1)
    failed = await quota.caller.import_path("large")
    assert (failed.state, failed.error_reason) == (FAILED, "QUOTA_STORAGE")
    assert (await quota.caller.import_path("small")).state == SUCCEEDED
    assert await quota.cleared() == image_bytes(small)
    assert set(quota.stored()) == names


async def test_imports_at_once_do_not_exceed_the_quota_together(quota: Quota) -> None:
    limit_bytes = 0
    for number in range(4):
        files = coco_files(8, seed=number)
        quota.place(f"set-{number}", files)
        limit_bytes = image_bytes(files) * 3 // 2
    await quota.allow(limit_bytes, 1)
    started = [await quota.caller.start(store_path=f"set-{number}") for number in range(4)]
    ended = [await quota.caller.end(work.import_id) for work in started]
    assert [work.state for work in ended].count(SUCCEEDED) == 1, ended
    assert {work.error_reason for work in ended} == {"", "QUOTA_STORAGE"}
    assert await quota.cleared() == sum(quota.stored().values()) <= limit_bytes


async def test_an_import_beside_one_that_fails_keeps_the_images_that_both_have(quota: Quota) -> None:
    large = coco_files(40, seed=1)
    shared = coco_files(6, seed=1)
    names = quota.place("shared", shared)
    assert names < quota.place("large", large)
    await quota.allow(image_bytes(large) // 2, 1)
    started = [await quota.caller.start(store_path=path) for path in ("large", "shared", "large", "shared")]
    ended = [await quota.caller.end(work.import_id) for work in started]
    assert [work.state for work in ended[::2]] == [FAILED, FAILED]
    counted_bytes = await quota.cleared()
    kept = SUCCEEDED in [work.state for work in ended[1::2]]
    assert set(quota.stored()) == (names if kept else set())
    assert counted_bytes == (image_bytes(shared) if kept else 0)
    assert (await quota.caller.import_path("shared")).state == SUCCEEDED


async def test_what_exceeds_the_accounts_storage_is_refused_until_it_has_more(
    dataset: Client, jetstream: JetStreamContext, database_url: str
) -> None:
    images = write_shapes(
        dataset.store / "accounts" / dataset.account_id / "shapes", train=4, validation=2, test=2
    ).images
    images_bytes = sum(file.stat().st_size for file in images.iterdir())
    database = await asyncpg.connect(database_url)

    allow = Quota(jetstream, database, dataset).allow

    async def left_bytes() -> int:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await dataset.create_upload(images_bytes + 1)
        assert from_rpc(refused.value).reason == "QUOTA_STORAGE"
        return int(from_rpc(refused.value).metadata["left_bytes"])

    await allow(images_bytes - 1, 1)
    assert await left_bytes() == images_bytes - 1
    failed = await dataset.import_path("shapes")
    assert (failed.state, failed.error_reason) == (FAILED, "QUOTA_STORAGE")
    await allow(images_bytes + 10, 2)
    for _ in range(2):
        assert (await dataset.import_path("shapes")).state == SUCCEEDED
    assert await left_bytes() == 10, "each image counts once, however many imports have it"

    # As code from before there was a count leaves an account, in the midst of an import.
    importing = """
        UPDATE import SET state = 'IMPORTING', dataset_version_id = NULL, ended_at = NULL,
            claim_token = gen_random_uuid(), claim_expires_at = clock_timestamp() + interval '1 hour'
        WHERE import_id = (SELECT import_id FROM import WHERE state = 'SUCCEEDED' ORDER BY created_at LIMIT 1)
        RETURNING import_id
    """
    import_id = await database.fetchval(importing)
    await database.execute("UPDATE account_store SET stored_bytes = 0, counted_at = NULL")
    await asyncio.sleep(HOUSEKEEPING_S + 1)
    counted = "SELECT stored_bytes FROM account_store WHERE account_id = $1"
    assert await database.fetchval(counted, dataset.account_id) == 0, "what an import stores is not counted twice"
    ended = """
        UPDATE import SET state = 'FAILED', error_reason = 'X', ended_at = created_at, claim_token = NULL,
            claim_expires_at = NULL
        WHERE import_id = $1
    """
    await database.execute(ended, import_id)
    await until(lambda: database.fetchval("SELECT bool_and(counted_at IS NOT NULL) FROM account_store"))
    assert await left_bytes() == 10, "images from before are counted"
    await database.close()
