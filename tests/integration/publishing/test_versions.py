"""Versions under traffic: nothing fails while one takes the place of another, and what is broken never serves."""

import asyncio
import itertools
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from saucer import serving
from saucer.billing.v1 import billing_pb2
from saucer.lib.auth import Role
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.local.servers import TritonServer
from saucer.publishing.placement import Placement, model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import publishing_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.publishing.load import Load, steady_load
from tests.integration.publishing.online import HOLD_MICROS, Online, infer_request, jpeg, signal_serving_process
from tests.integration.publishing.test_replicas import states
from tests.support.events import until
from tests.support.graphs import hanging_graph, write_model
from tests.support.services import Tokens

# A model of the tests loads in two seconds; a busy machine takes longer.
TRIAL_S = 30.0
EXITS = b"a graph that ends its process"


@pytest.fixture
def world(world: Online) -> Online:
    world.settings["triton_trial_s"] = TRIAL_S
    return world


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime with a fault: the graph EXITS ends the process that loads it."""
    copy = tmp_path / "fragile"
    shutil.copytree(Path(serving.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
    runtime = copy / "runtime.py"
    fault = f'    if path.read_bytes() == {EXITS!r}:\n        __import__("os")._exit(3)\n'
    text = runtime.read_text()
    place = "    import onnxruntime"
    assert place in text
    runtime.write_text(text.replace(place, fault + place))
    monkeypatch.setattr(serving, "__path__", [str(copy)])


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return str(from_rpc(failure.value).reason)


async def exchange(world: Online, account_id: str, good: int, broken: int) -> Load:
    """Updates of both kinds, one after another, under steady load."""
    model_id = await world.model(account_id)
    cut = (write_model(world.folder / "whole") / "model.onnx").read_bytes()[:-200]
    bad = [(b"no graph", "model.onnx cannot be loaded"), (cut, "model.onnx cannot be loaded")]
    bad += [(EXITS, "exit status 3"), (hanging_graph(), f"within {TRIAL_S:g} s")]
    other_id = await world.model(account_id)
    bad_ids = [(await world.model(account_id, graph=graph), reason) for graph, reason in bad]
    active = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
    steps = [number * broken // good for number in range(good + 1)]
    number = 1
    async with steady_load(world, active) as load:
        for done, (before, after) in enumerate(itertools.pairwise(steps)):
            updated = await world.update(active, other_id if done % 2 == 0 else model_id)
            settled = await world.until_settled(updated)
            number += 1
            assert settled.version_number == updated.candidate.version.number, await world.records(active)
            for which in range(before, after):
                bad_id, reason = bad_ids[which % len(bad_ids)]
                await world.until_settled(await world.update(active, bad_id))
                number += 1
                last = (await world.records(active))[-1]
                assert last.action == publishing_pb2.UPDATE_ACTION_REJECTED
                assert reason in last.detail
                found = await world.get(active.deployment_id)
                assert found.version_number == settled.version_number
                assert found.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE
    assert not load.failures
    assert load.answers > good
    return load


async def test_updates_good_and_broken_fail_no_request_and_the_broken_never_serve(
    world: Online, fragile: None, triton_client: TritonClient
) -> None:
    async with world.serving():
        account_id = await world.account()
        await exchange(world, account_id, good=5, broken=4)
        (deployment,) = (
            await world.publishing.ListDeployments(
                publishing_pb2.ListDeploymentsRequest(), metadata=world.owner(account_id)
            )
        ).deployments

        async def only_the_one_that_serves() -> bool:
            loaded = [item.model for item in await triton_client.index() if item.state == "READY"]
            mine = [name for name in loaded if deployment.deployment_id in name]
            return mine == [model_name(deployment.deployment_id, deployment.version_number)]

        await until(only_the_one_that_serves)


@pytest.mark.soak
async def test_a_hundred_updates_and_twenty_broken_ones_fail_no_request_nor_stall_one(
    world: Online, fragile: None
) -> None:
    async with world.serving():
        load = await exchange(world, await world.account(), good=100, broken=20)
        print(f"{load.answers} requests, the longest {load.longest_s:.3f} s")
        assert load.longest_s <= 1.0


async def test_traffic_is_split_by_weight_and_the_candidate_promoted_abandoned_or_rolled_back(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        thresholds = [publishing_pb2.ClassThreshold(class_name="bright", threshold=0.9)]
        assert await refusal(world.update(created, "", thresholds=thresholds)) == "STATE_NOT_SERVED"
        active = await world.until_state(created, "ACTIVE", "FAILED")
        owner = world.owner(account_id)
        ids: dict[str, Any] = {"deployment_id": active.deployment_id}

        def call(name: str, request: Any) -> Any:
            return getattr(world.publishing, name)(request, metadata=owner)

        promote = publishing_pb2.PromoteCandidateRequest(request_id=new_id(), **ids)
        assert await refusal(call("PromoteCandidate", promote)) == "NO_CANDIDATE"
        proposed = await world.update(active, "", thresholds=thresholds, percent=50)
        assert (proposed.candidate.version.number, proposed.candidate.ready) == (2, False)
        assert await refusal(world.update(active, "", percent=1)) == "UPDATE_IN_PROGRESS"
        ready = await world.until_settled(proposed)
        assert (ready.version_number, ready.candidate.percent) == (1, 50)
        assert ready.candidate.version.parity.ok
        for kind in ("SplitDeployment", "PromoteCandidate", "AbandonCandidate"):
            of_another = getattr(publishing_pb2, f"{kind}Request")(request_id=new_id(), version_number=9, **ids)
            assert await refusal(call(kind, of_another)) == "OTHER_CANDIDATE"

        async def sides() -> Counter[int]:
            answers = [await world.predict(active, jpeg(180)) for _ in range(60)]
            # The answer is that of the version which it names: bright scores 0.7.
            assert all(item.detections[0].above_threshold == (item.version_number == 1) for item in answers)
            return Counter(item.version_number for item in answers)

        await asyncio.sleep(0.6)  # endpoint.KNOWN_S: so long an endpoint may not know of the split
        found = await sides()
        assert 10 < found[2] < 50, found
        outside = await asyncio.to_thread(_unversioned, world.address, dict(owner), active.deployment_id)
        assert 10 < outside["2"] < 50, outside
        await asyncio.to_thread(_pinned, world.address, dict(owner), active.deployment_id)
        split = publishing_pb2.SplitDeploymentRequest(request_id=new_id(), percent=0, **ids)
        assert (await call("SplitDeployment", split)).candidate.percent == 0
        await asyncio.sleep(0.6)
        assert await sides() == {1: 60}
        promote.version_number = 2
        promoted = await call("PromoteCandidate", promote)
        assert (promoted.version_number, promoted.HasField("candidate")) == (2, False)
        assert promoted.thresholds[1].threshold == 0.9
        again = await call("PromoteCandidate", promote)
        # Checks go on charging meanwhile.
        assert (again.version_number, again.HasField("candidate")) == (2, False), "the same call changes nothing"
        await asyncio.sleep(0.6)
        assert await sides() == {2: 60}

        back = publishing_pb2.RollBackDeploymentRequest(request_id=new_id(), version_number=9, **ids)
        assert await refusal(call("RollBackDeployment", back)) == "DEPLOYMENT_VERSION_NOT_FOUND"
        back.version_number = 2
        assert await refusal(call("RollBackDeployment", back)) == "VERSION_SERVES"
        back.version_number = 1
        assert (await world.until_settled(await call("RollBackDeployment", back))).version_number == 1

        await world.until_settled(await world.update(active, "", percent=10))
        abandon = publishing_pb2.AbandonCandidateRequest(request_id=new_id(), **ids)
        assert not (await call("AbandonCandidate", abandon)).HasField("candidate")
        await world.update(active, "", percent=10)
        await world.stop(active)
        assert not (await world.until_state(active, "STOPPED")).HasField("candidate")

        await _samples_of_both_sides(world, active)
        names = [publishing_pb2.UpdateAction.Name(item.action)[14:] for item in await world.records(active)]
        assert names == [
            "CREATED", "UPDATED", "SPLIT", "SPLIT", "PROMOTED", "ROLLED_BACK", "PROMOTED", "UPDATED", "SPLIT",
            "ABANDONED", "UPDATED", "STOPPED",
        ]  # fmt: skip
        records = await world.records(active)
        assert all(bool(item.request_id) == (item.author != "saucer") for item in records)
        assert [(item.from_version, item.to_version) for item in records[:7]] == [
            (1, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 1), (2, 1),
        ]  # fmt: skip
        assert records[6].author == "saucer" != records[5].author
        versions = publishing_pb2.ListDeploymentVersionsRequest(page_size=2, **ids)
        page = await call("ListDeploymentVersions", versions)
        versions.page_token = page.next_page_token
        rest = await call("ListDeploymentVersions", versions)
        assert [item.number for item in [*page.versions, *rest.versions]] == [4, 3, 2, 1]


async def _samples_of_both_sides(world: Online, deployment: publishing_pb2.Deployment) -> None:
    owner = world.owner(deployment.account_id)
    request = publishing_pb2.ListTrafficSamplesRequest(deployment_id=deployment.deployment_id)

    async def look() -> bool:
        samples = (await world.publishing.ListTrafficSamples(request, metadata=owner)).samples
        # 60 in each of three rounds and by a client outside, one more of each side by one that names it, and one that
        # names a version that there is not.
        return sum(item.requests for item in samples) >= 243

    await until(look, timeout_s=25)
    samples = (await world.publishing.ListTrafficSamples(request, metadata=owner)).samples
    assert {item.version_number for item in samples} >= {1, 2}
    assert sum(item.errors for item in samples) == 1
    for item in samples:
        assert 0 < item.latency_p50_ms <= item.latency_p95_ms <= item.latency_p99_ms
        assert item.load > 0
    events = await world.publishing.ListDeploymentEvents(
        publishing_pb2.ListDeploymentEventsRequest(deployment_id=deployment.deployment_id), metadata=owner
    )
    assert {"QUEUED", "DEPLOYING", "ACTIVE", "STOPPING", "STOPPED"} <= {item.kind for item in events.events}


def _unversioned(url: str, headers: dict[str, str], name: str) -> Counter[str]:
    """The versions that answered a client that names none."""
    client = tritonclient.grpc.InferenceServerClient(url)
    image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg(180)]], dtype=object))
    answers = [client.infer(name, [image], headers=headers).get_response() for _ in range(60)]
    client.close()
    return Counter(answer.model_version for answer in answers)


def _pinned(url: str, headers: dict[str, str], name: str) -> None:
    """A client that names a version gets that one."""
    client = tritonclient.grpc.InferenceServerClient(url)
    image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg(180)]], dtype=object))
    for version in ("1", "2"):
        answer = client.infer(name, [image], model_version=version, headers=headers).get_response()
        assert answer.model_version == version
    with pytest.raises(tritonclient.utils.InferenceServerException, match="no deployment version"):
        client.infer(name, [image], model_version="3", headers=headers)
    client.close()


async def test_a_client_that_names_a_version_is_answered_by_no_other_when_that_fails(world: Online) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        await world.until_settled(await world.update(active, "", percent=50))
        owner = world.owner(account_id)
        named = infer_request(active.deployment_id, jpeg(180), version="2")
        ready = pb.ModelReadyRequest(name=active.deployment_id, version="2")
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.sleep(0.6)  # endpoint.KNOWN_S
            assert (await stub.ModelInfer(named, metadata=owner)).model_version == "2"
            assert (await stub.ModelReady(ready, metadata=owner)).ready
            signal_serving_process(model_name(active.deployment_id, 2), signal.SIGKILL)
            reasons: list[str] = []

            async def gone() -> bool:
                reasons.append(await refusal(stub.ModelInfer(named, metadata=owner)))
                return reasons[-1] == "DEPLOYMENT_VERSION_NOT_FOUND"

            # It is rejected, since the other one serves from the same Triton.
            await until(gone)
            assert set(reasons[:-1]) <= {"NOT_SERVING"}
        assert (await world.predict(active, jpeg(180))).version_number == 1


async def test_a_candidate_with_a_share_answers_all_requests_while_the_version_that_serves_is_brought_back(
    world: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, put_back = asyncio.Event(), Placement.put_back

    async def put_back_later(*place: Any, **how: Any) -> None:
        await looked.wait()
        await put_back(*place, **how)

    monkeypatch.setattr(Placement, "put_back", put_back_later)
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        await world.until_settled(await world.update(active, "", percent=50))
        await asyncio.sleep(0.6)  # endpoint.KNOWN_S
        named = infer_request(active.deployment_id, jpeg(180), version="1")
        ready = pb.ModelReadyRequest(name=active.deployment_id)
        owner = world.owner(account_id)
        async with steady_load(world, active) as load:
            signal_serving_process(model_name(active.deployment_id, 1), signal.SIGKILL)
            degraded = await world.until_state(active, "DEGRADED")
            assert (await world.predict(active, jpeg(180))).version_number == 2
            async with grpc.aio.insecure_channel(world.address) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert await refusal(stub.ModelInfer(named, metadata=owner)) == "NOT_SERVING"
                assert (await stub.ModelReady(ready, metadata=owner)).ready
            looked.set()
            back = await world.until_state(active, "ACTIVE")
            assert (back.version_number, back.candidate.ready) == (1, True)
        assert not load.failures
        assert degraded.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING
        await world.stop(back)
        await world.until_state(back, "STOPPED")


async def test_a_candidate_that_was_ready_and_does_not_serve_now_is_not_promoted_until_it_is_back(
    world: Online, triton: TritonServer
) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        await world.until_settled(await world.update(active, "", percent=50))

        async def both_are(state: str) -> bool:
            return await states(world, active) == [("local", 1, state), ("local", 2, state)]

        triton.kill()
        await until(lambda: both_are("LOST"))
        promote = publishing_pb2.PromoteCandidateRequest(request_id=new_id(), deployment_id=active.deployment_id)
        owner = world.owner(account_id)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await world.publishing.PromoteCandidate(promote, metadata=owner)
        refused = from_rpc(failure.value)
        assert (refused.reason, "wait until it does, or abandon it" in refused.message) == ("NOT_READY", True)
        await triton.start()
        await until(lambda: both_are("SERVING"), timeout_s=60)
        promoted = await world.publishing.PromoteCandidate(promote, metadata=owner)
        assert (promoted.version_number, promoted.state) == (2, publishing_pb2.DEPLOYMENT_STATE_ACTIVE)


async def test_a_candidate_that_triton_has_forgotten_is_brought_back_though_the_other_version_serves(
    world: Online, triton_client: TritonClient
) -> None:
    async with world.serving():
        active = await world.active()
        await world.until_settled(await world.update(active, "", percent=50))
        # As after a restart of Triton in which the other version came back first.
        await triton_client.unload(model_name(active.deployment_id, 2))
        await until(lambda: triton_client.ready(model_name(active.deployment_id, 2)), timeout_s=60)
        rejected = [r for r in await world.records(active) if r.action == publishing_pb2.UPDATE_ACTION_REJECTED]
        assert rejected == []
        found = await world.until_settled(active)
        assert (found.candidate.version.number, found.candidate.percent) == (2, 50)


async def test_a_candidate_with_a_share_that_does_not_come_back_with_the_other_version_is_rejected(
    world: Online, triton: TritonServer
) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        other_id = await world.model(account_id)
        await world.until_settled(await world.update(active, other_id, percent=50))
        await world.objects.delete(f"system/{account_id}/runs/{other_id}/attempt-1/model.onnx")
        triton.kill()
        shutil.rmtree(triton.repository / model_name(active.deployment_id, 2))
        await until(lambda: asyncio.sleep(0, not triton.running))
        await triton.start()

        async def rejected() -> publishing_pb2.UpdateRecord | None:
            last = (await world.records(active))[-1]
            return last if last.action == publishing_pb2.UPDATE_ACTION_REJECTED else None

        assert "could not be brought back: There is no object" in (await until(rejected, timeout_s=60)).detail
        found = await world.until_state(active, "ACTIVE")
        assert (found.version_number, found.HasField("candidate")) == (1, False)


async def test_a_drained_triton_is_left_with_no_failed_request_to_a_candidate_that_loads_slowly_elsewhere(
    world: Online, second: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        await world.until_settled(await world.update(active, "", percent=50))
        put = Placement.put

        async def put_slowly(self: Placement, name: str, *args: Any, **options: Any) -> Any:
            if name == model_name(active.deployment_id, 2):
                await asyncio.sleep(3)
            return await put(self, name, *args, **options)

        monkeypatch.setattr(Placement, "put", put_slowly)
        await world.register("second", second)
        named = infer_request(active.deployment_id, jpeg(180), version="2")
        await asyncio.sleep(0.6)  # endpoint.KNOWN_S
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            drain = publishing_pb2.DrainTritonRequest(triton_id="local")
            await world.publishing.DrainTriton(drain, metadata=world.administrator)

            async def moved() -> bool:
                assert (await stub.ModelInfer(named, metadata=world.owner(account_id))).model_version == "2"
                return await states(world, active) == [("second", 1, "SERVING"), ("second", 2, "SERVING")]

            await until(moved, timeout_s=60)
            await asyncio.sleep(0.6)
            assert await moved()


async def test_a_deleted_model_is_deployed_no_more_in_any_way_and_serves_on_where_it_does(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(3 * HOLD_MICROS)
        first, second = await world.model(account_id), await world.model(account_id)
        active = await world.until_state(await world.create(account_id, first), "ACTIVE")
        update_id = new_id()
        updated = await world.update(active, second, request_id=update_id)
        assert (await world.until_settled(updated)).version_number == 2
        for model_id in (first, second):
            deleted = training_events.ModelDeleted(model=training_pb2.Model(model_id=model_id))
            await world.send(deleted, "training", account_id)
        owner = world.owner(account_id)

        async def refused() -> bool:
            request = world.form(second, display_name=new_id())
            try:
                await world.publishing.CreateDeployment(request, metadata=owner)
            except grpc.aio.AioRpcError as error:
                return from_rpc(error).reason == "MODEL_DELETED"
            return False

        assert await until(refused)
        ids: dict[str, Any] = {"deployment_id": active.deployment_id, "request_id": new_id()}
        back = publishing_pb2.RollBackDeploymentRequest(version_number=1, **ids)
        assert await refusal(world.publishing.RollBackDeployment(back, metadata=owner)) == "MODEL_DELETED"
        update = publishing_pb2.UpdateDeploymentRequest(model_id=first, **ids)
        assert await refusal(world.publishing.UpdateDeployment(update, metadata=owner)) == "MODEL_DELETED"
        again = publishing_pb2.UpdateDeploymentRequest(
            deployment_id=active.deployment_id, request_id=update_id, model_id=second
        )
        assert (await world.publishing.UpdateDeployment(again, metadata=owner)).version_number == 2, "a late retry"
        assert (await world.predict(active, jpeg(200))).version_number == 2
        await world.stop(active)
        await world.until_state(active, "STOPPED")
        assert await refusal(world.start(active)) == "MODEL_DELETED"


async def test_an_update_to_a_strangers_model_or_by_a_viewer_is_refused(world: Online, tokens: Tokens) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        strange_id = await world.model(await world.account(HOLD_MICROS))
        assert await refusal(world.update(active, strange_id)) == "MODEL_NOT_FOUND"
        request = publishing_pb2.UpdateDeploymentRequest(request_id=new_id(), deployment_id=active.deployment_id)
        viewer = tokens.metadata(Role.VIEWER, account_id)
        assert await refusal(world.publishing.UpdateDeployment(request, metadata=viewer)) == "ROLE_NOT_ALLOWED"
