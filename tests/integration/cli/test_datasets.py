"""`saucer dataset` and `saucer draft` against a real dataset."""

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.main import DatasetSettings, wire
from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from tests.integration.dataset.client import coco_files, write_files
from tests.support.cli import Cli
from tests.support.events import event, publish
from tests.support.services import ServiceRunner, Tokens


@pytest.fixture
async def cli(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, tmp_path: Path
) -> AsyncIterator[Cli]:
    """Of an account's editor."""
    account_id = new_id()
    created = billing_events.AccountCreated(account=billing_pb2.Account(account_id=account_id))
    await publish(jetstream, event(created, "billing", account_id, None, account_id))
    settings = {"object_store_url": f"file://{tmp_path}/store", "work_folder": tmp_path / "work"}
    async with run_service("dataset", DatasetSettings, wire, **settings) as dataset:
        token = tokens.mint(Role.EDITOR, account_id)
        yield Cli.write(tmp_path / "profile", {"dataset": dataset.address}, token=token, account_id=account_id)


async def test_images_are_imported_listed_labelled_and_exported(cli: Cli, tmp_path: Path) -> None:
    write_files(tmp_path / "photos", {n: data for n, data in coco_files(6).items() if n.endswith(".png")})
    await asyncio.to_thread(_label_all, cli, tmp_path)


def _label_all(cli: Cli, tmp_path: Path) -> None:
    made = cli.json("dataset", "import", str(tmp_path / "photos"), "--format", "images")["datasetVersion"]
    draft = cli.json("draft", "create", made["datasetVersionId"], "--name", "d", "--class", "cup")
    waiting = cli.json("dataset", "images", draft["draftId"], "--unlabelled")
    assert len(waiting) == 6
    image, empty = waiting[:2]
    cli("draft", "add-class", draft["draftId"], "plate")
    box = ["--box", "cup:1,2,11,12.5", "--box", "plate:3,3,9,9"]
    cli("draft", "label", draft["draftId"], image["imageId"], *box, "--revision", image["revision"])
    cli("draft", "label", draft["draftId"], empty["imageId"], "--revision", empty["revision"])
    assert "IMAGE_CHANGED" in cli.fails(
        "draft", "label", draft["draftId"], image["imageId"], "--revision", image["revision"]
    )
    assert cli.json("draft", "show", draft["draftId"])["unlabelledImages"] == "4"
    assert [row["draftId"] for row in cli.json("draft", "list")] == [draft["draftId"]]
    version = cli.json("draft", "version", draft["draftId"], "--name", "labelled")["datasetVersion"]
    assert version["statistics"]["boxes"] == "2"
    cli("dataset", "export", version["datasetVersionId"], "--output", str(tmp_path / "labels.json"))
    annotations = json.loads((tmp_path / "labels.json").read_text())["annotations"]
    assert [row["bbox"] for row in annotations] == [[1, 2, 10, 10.5], [3, 3, 6, 6]]
    cli("dataset", "export", version["datasetVersionId"], "--images", "--output", str(tmp_path / "all.zip"))
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert len(archive.namelist()) == 7
    again = cli.json("dataset", "import", str(tmp_path / "all.zip"))["datasetVersion"]
    assert again["datasetVersionId"] == version["datasetVersionId"]
    cli("draft", "delete", draft["draftId"])
    assert cli.json("draft", "list") == []


async def test_a_path_in_the_accounts_store_is_imported(cli: Cli, tmp_path: Path) -> None:
    account_id = json.loads((tmp_path / "profile").read_text())["account_id"]
    write_files(tmp_path / "store/accounts" / account_id / "mine", coco_files(3))
    await asyncio.to_thread(cli.fails, "dataset", "import", code=2)
    made = await asyncio.to_thread(cli.json, "dataset", "import", "--store-path", "mine")
    assert made["datasetVersion"]["displayName"] == "mine"
