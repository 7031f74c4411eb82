"""What an account may store: uploads are refused, and imports end, beyond the quota that billing tells."""

import asyncio

import asyncpg
import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.v1 import dataset_pb2
from saucer.dataset.work import HOUSEKEEPING_S
from saucer.lib.grpc_client import from_rpc
from tests.integration.dataset.client import Client
from tests.support.events import event, publish, until
from tests.support.shapes import write_shapes


async def test_what_exceeds_the_accounts_storage_is_refused_until_it_has_more(
    dataset: Client, jetstream: JetStreamContext, database_url: str
) -> None:
    images = write_shapes(
        dataset.store / "accounts" / dataset.account_id / "shapes", train=4, validation=2, test=2
    ).images
    images_bytes = sum(file.stat().st_size for file in images.iterdir())
    database = await asyncpg.connect(database_url)

    async def allow(storage_bytes: int, revision: int) -> None:
        quotas = billing_pb2.AccountQuotas(
            account_id=dataset.account_id, weight=1, storage_bytes=storage_bytes, revision=revision
        )
        changed = billing_events.AccountQuotasChanged(quotas=quotas)
        await publish(jetstream, event(changed, "billing", dataset.account_id, None, dataset.account_id))
        query = "SELECT quota_revision = $2 FROM account_store WHERE account_id = $1"
        await until(lambda: database.fetchval(query, dataset.account_id, revision))

    async def left_bytes() -> int:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await dataset.create_upload(images_bytes + 1)
        assert from_rpc(refused.value).reason == "QUOTA_STORAGE"
        return int(from_rpc(refused.value).metadata["left_bytes"])

    await allow(images_bytes - 1, 1)
    assert await left_bytes() == images_bytes - 1
    failed = await dataset.import_path("shapes")
    assert (failed.state, failed.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, "QUOTA_STORAGE")
    await allow(images_bytes + 10, 2)
    for _ in range(2):
        assert (await dataset.import_path("shapes")).state == dataset_pb2.IMPORT_STATE_SUCCEEDED
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
