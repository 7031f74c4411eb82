"""Further roots: an administrator maps them, and an account imports from its own and from no other's."""

from pathlib import Path

import grpc
import pytest

from saucer.dataset.v1 import dataset_pb2
from saucer.lib.auth import Role
from tests.integration.dataset.client import Client, client, refusal
from tests.integration.dataset.conftest import NewAccount
from tests.support.services import Running, Tokens
from tests.support.shapes import write_shapes


async def test_an_account_imports_from_the_roots_that_are_mapped_for_it(
    dataset: Client, running: Running, tokens: Tokens, new_account: NewAccount, store: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    write_shapes(shared / "sets" / "shapes", train=4, validation=2, test=2)
    administrator = tokens.metadata(Role.ADMINISTRATOR)
    request = dataset_pb2.MapRootRequest(account_id=dataset.account_id, name="lab", url=f"file://{shared}")
    await dataset.stub.MapRoot(request, metadata=administrator)
    work = await dataset.import_path("sets/shapes", mapped_root="lab")
    assert (await dataset.version(work.dataset_version_id)).statistics.images == 8
    (root,) = (
        await dataset.stub.ListMappedRoots(dataset_pb2.ListMappedRootsRequest(), metadata=dataset.metadata)
    ).roots
    assert (root.name, root.url) == ("lab", ""), "where it lies is the administrator's to know"

    other = client(running.channel, tokens, await new_account(), store)
    assert (await other.import_path("sets/shapes", mapped_root="lab")).error_reason == "ROOT_UNKNOWN"
    with pytest.raises(grpc.aio.AioRpcError) as climbing:
        await dataset.start(store_path="../store", mapped_root="lab")
    assert refusal(climbing.value) == ("INVALID_ARGUMENT", "KEY_INVALID")

    unmap = dataset_pb2.UnmapRootRequest(account_id=dataset.account_id, name="lab")
    await dataset.stub.UnmapRoot(unmap, metadata=administrator)
    assert (await dataset.import_path("sets/shapes", mapped_root="lab")).error_reason == "ROOT_UNKNOWN"


@pytest.mark.parametrize("url", ["file:///not/there", "http://example.com/x", "memory:///", "relative"])
async def test_what_is_no_place_is_not_mapped(dataset: Client, tokens: Tokens, url: str) -> None:
    request = dataset_pb2.MapRootRequest(account_id=dataset.account_id, name="lab", url=url)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await dataset.stub.MapRoot(request, metadata=tokens.metadata(Role.ADMINISTRATOR))
    assert refusal(refused.value) == ("INVALID_ARGUMENT", "URL_INVALID")
