"""What the details of a deployment show besides requests: how they were batched, and what its models said."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from saucer.lib.clock import ManualClock
from saucer.lib.grpc_client import from_rpc
from saucer.lib.postgres import connect
from saucer.lib.retention import forget
from saucer.publishing import endpoint
from saucer.publishing.main import PublishingSettings
from saucer.publishing.store.monitoring import retention_rules
from saucer.publishing.traffic import PIECE
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import Online, infer_request, jpeg
from tests.support.events import until

# A piece of time may have just begun, and its end is stored a moment later.
STORED_S = 2 * PIECE.total_seconds() + 5


async def log_lines(
    world: Online, deployment: publishing_pb2.Deployment, **page: Any
) -> publishing_pb2.ListDeploymentLogLinesResponse:
    request = publishing_pb2.ListDeploymentLogLinesRequest(deployment_id=deployment.deployment_id, **page)
    return await world.publishing.ListDeploymentLogLines(request, metadata=world.owner(deployment.account_id))


async def samples(world: Online, deployment: publishing_pb2.Deployment) -> Sequence[publishing_pb2.TrafficSample]:
    request = publishing_pb2.ListTrafficSamplesRequest(deployment_id=deployment.deployment_id)
    answer = await world.publishing.ListTrafficSamples(request, metadata=world.owner(deployment.account_id))
    return answer.samples


async def test_batches_and_waits_are_shown_beside_requests_and_lines_of_the_model_until_they_are_old(
    world: Online,
) -> None:
    async with world.serving():
        active = await world.active()

        loaded = (await log_lines(world, active)).lines
        assert len(loaded) == 1, "it is there as soon as the model serves"
        assert loaded[0].message.startswith("serves with onnxruntime on 1 threads: trial ")
        assert (loaded[0].level, loaded[0].version_number, loaded[0].instance_id) == ("INFO", 1, "local")

        with pytest.raises(grpc.aio.AioRpcError, match="IMAGE"):
            # Its header is good, so that it comes as far as the model.
            await world.predict(active, jpeg(180)[:300] + bytes(50))
        for _ in range(20):
            await asyncio.gather(*(world.predict(active, jpeg(180)) for _ in range(16)))

        async def counted() -> publishing_pb2.TrafficSample | None:
            return next((item for item in await samples(world, active) if item.batch_size > 0), None)

        shown = await until(counted, timeout_s=STORED_S)
        assert 1 < shown.batch_size <= 8
        assert 0 < shown.queue_ms < shown.latency_p99_ms

        async def refusal() -> publishing_pb2.DeploymentLogLine | None:
            newest = (await log_lines(world, active, page_size=1)).lines[0]
            return newest if newest.level == "WARNING" else None

        assert (
            await until(refusal, timeout_s=STORED_S)
        ).message == "images were refused: 1; the last: the image is damaged"
        first = await log_lines(world, active, page_size=1)
        second = await log_lines(world, active, page_size=1, page_token=first.next_page_token)
        assert list(second.lines) == list(loaded)
        assert not second.next_page_token

        kept = timedelta(days=PublishingSettings.model_fields["monitoring_keep_days"].default)
        assert kept == timedelta(weeks=1)
        clock = ManualClock(loaded[0].log_time.ToDatetime(UTC) + kept - timedelta(minutes=1))
        database = await connect(world.settings["database_url"], clock)
        await forget("publishing", database, retention_rules(kept))
        assert len((await log_lines(world, active)).lines) == 2
        assert await samples(world, active)
        clock.advance(timedelta(minutes=5))
        await forget("publishing", database, retention_rules(kept))
        database.pool.terminate()
        assert not (await log_lines(world, active)).lines
        assert not await samples(world, active)


async def test_whatever_refuses_a_request_makes_it_an_error_of_its_deployment_and_of_no_other(
    world: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first request of a token takes its second; the next one may come ten seconds later.
    async with world.serving(token_requests_per_s=0.1):
        active = await world.active()
        account_id = active.account_id
        owner = world.owner(account_id)
        predict = publishing_pb2.PredictRequest(deployment_id=active.deployment_id, image=jpeg(180))

        async def outcome(call: Any) -> str:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return from_rpc(error).reason
            return "OK"

        async with grpc.aio.insecure_channel(world.address) as channel:
            kserve = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            def infer(*images: bytes) -> Any:
                return kserve.ModelInfer(infer_request(active.deployment_id, *images), metadata=world.owner(account_id))

            found = [await outcome(world.publishing.Predict(predict, metadata=owner)) for _ in range(4)]
            assert found == ["OK", "RATE_LIMITED", "RATE_LIMITED", "RATE_LIMITED"]
            assert await outcome(infer(jpeg(180))) == "OK"
            assert await outcome(infer(b"no image")) == "IMAGE_REFUSED"
            assert await outcome(world.predict(active, b"no image")) == "IMAGE_REFUSED"
            with monkeypatch.context() as patch:
                patch.setattr(endpoint, "MAX_IN_FLIGHT", 0)
                assert await outcome(world.predict(active, jpeg(180))) == "TOO_MANY_REQUESTS"
                assert await outcome(infer(jpeg(180))) == "TOO_MANY_REQUESTS"
            stranger = world.owner(await world.account(0))
            assert await outcome(world.publishing.Predict(predict, metadata=stranger)) == "DEPLOYMENT_NOT_FOUND"
            await world.stop(active)
            await world.until_state(active, "STOPPED")
            assert await outcome(world.predict(active, jpeg(180))) == "NOT_ACTIVE"
            assert await outcome(infer(jpeg(180))) == "NOT_ACTIVE"

        async def counted() -> tuple[int, int] | None:
            shown = await samples(world, active)
            sums = sum(item.requests for item in shown), sum(item.errors for item in shown)
            return sums if sums[0] >= 11 else None

        assert await until(counted, timeout_s=STORED_S) == (11, 9)


async def test_a_graceful_stop_stores_what_was_asked_until_then(world: Online) -> None:
    async with world.serving():
        active = await world.active()
        for _ in range(5):
            await world.predict(active, jpeg(180))
        with pytest.raises(grpc.aio.AioRpcError, match="IMAGE"):
            await world.predict(active, b"no image")
    async with world.serving():
        found = await samples(world, active)
        assert (sum(item.requests for item in found), sum(item.errors for item in found)) == (6, 1)
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_model_that_does_not_load_has_a_line_that_says_why_which_no_other_account_reads(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id, graph=b"no graph"))
        failed = await world.until_state(created, "FAILED", "ACTIVE")
        line = (await log_lines(world, failed)).lines[0]
        assert line.level == "ERROR"
        assert line.message.startswith("did not load: ")
        assert "model.onnx cannot be loaded" in line.message
        request = publishing_pb2.ListDeploymentLogLinesRequest(deployment_id=failed.deployment_id)
        stranger = world.owner(await world.account(0))
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await world.publishing.ListDeploymentLogLines(request, metadata=stranger)
