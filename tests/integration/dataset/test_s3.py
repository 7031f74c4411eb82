"""The same over S3: an upload, a folder and an archive of the account's store, images read and exported."""

import hashlib
from pathlib import Path

import pytest

from saucer.dataset.v1 import dataset_pb2
from saucer.lib.objects import Objects, user_prefix
from tests.integration.dataset.client import Client, archive_of, client, coco_files
from tests.integration.dataset.conftest import NewAccount, RunDataset
from tests.support.s3 import S3Server
from tests.support.services import Tokens


async def test_imports_labels_and_exports_work_over_s3(
    s3: S3Server, run_dataset: RunDataset, new_account: NewAccount, tokens: Tokens
) -> None:
    async with run_dataset(object_store_url=s3.url) as running:
        dataset = client(running.channel, tokens, await new_account(), s3.folder)
        uploaded = await dataset.import_bytes(archive_of(coco_files(8)))
        version = await dataset.version(uploaded.dataset_version_id)
        assert hashlib.sha256((s3.folder / version.manifest_key).read_bytes()).hexdigest() == version.manifest_sha256

        own = {f"photos/set/{name}": data for name, data in coco_files(8).items()}
        for name, data in (own | {"archive.zip": archive_of(coco_files(5, seed=2))}).items():
            await Objects(s3.url).put(f"{user_prefix(dataset.account_id)}/{name}", data)
        assert (await dataset.import_path("photos/set")).dataset_version_id == uploaded.dataset_version_id
        archived = await dataset.import_path("archive.zip")
        assert (await dataset.version(archived.dataset_version_id)).statistics.images == 5
        nothing = await dataset.import_path("photos/none")
        assert (nothing.state, nothing.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, "SOURCE_NOT_FOUND")

        page = await dataset.list_images(uploaded.dataset_version_id, include_images=True)
        assert [hashlib.sha256(image.image).hexdigest() for image in page.images] == [i.sha256 for i in page.images]
        again = await dataset.import_bytes(await dataset.export(uploaded.dataset_version_id, include_images=True))
        assert again.dataset_version_id == uploaded.dataset_version_id


@pytest.mark.usefixtures("s3")
async def test_a_store_that_cannot_be_written_is_not_proven_and_imports_are_refused(
    run_dataset: RunDataset, new_account: NewAccount, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with run_dataset(object_store_url="s3://saucer/store") as running:
        dataset: Client = client(running.channel, tokens, await new_account(proven=False), Path())
        with pytest.raises(Exception, match="not proven writable"):
            await dataset.create_upload(10)
