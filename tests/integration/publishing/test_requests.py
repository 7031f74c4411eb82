"""Requests that are refused: for what they carry, who sends them, or how many there are."""

import asyncio
import json

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from saucer.lib.ids import new_id
from saucer.publishing.endpoint import MAX_IMAGE_BYTES
from saucer.publishing.kserve import SERVED
from saucer.publishing.placement import model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import HOLD_MICROS, Online, infer_request, jpeg, refused


async def test_a_plain_triton_client_sends_jpeg_bytes_with_a_token_and_gets_boxes(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await world.model(account_id)
        deployment = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        headers = dict(world.owner(account_id))
        await asyncio.to_thread(_use_plain_client, world.address, headers, deployment.deployment_id)

        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata, stranger = world.owner(account_id), world.owner(await world.account(0))
            for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"):
                request = getattr(pb, f"{name}Request")()
                assert (await refused(getattr(stub, name)(request, metadata=metadata)))[0] == "UNIMPLEMENTED"
            for name in ("SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"):
                request = getattr(pb, f"{name}Request")()
                assert (await refused(getattr(stub, name)(request, metadata=metadata)))[0] == "UNIMPLEMENTED"
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                async for _ in stub.ModelStreamInfer(iter([pb.ModelInferRequest()]), metadata=metadata):
                    pass
            infer = infer_request(deployment.deployment_id, jpeg(180))
            for call in (
                stub.ModelInfer(infer, metadata=stranger),
                stub.ModelReady(pb.ModelReadyRequest(name=deployment.deployment_id), metadata=stranger),
                stub.ModelMetadata(pb.ModelMetadataRequest(name=deployment.deployment_id), metadata=stranger),
                stub.ModelConfig(pb.ModelConfigRequest(name=deployment.deployment_id), metadata=stranger),
            ):
                assert (await refused(call))[0] == "NOT_FOUND"
            assert (await refused(stub.ModelInfer(infer)))[0] == "UNAUTHENTICATED"
            infer.inputs[0].parameters["shared_memory_region"].string_param = "x"
            assert (await refused(stub.ModelInfer(infer, metadata=metadata)))[1].reason == "PARAMETERS_REFUSED"
            inner = infer_request(model_name(deployment.deployment_id, 1), jpeg(180))
            assert (await refused(stub.ModelInfer(inner, metadata=metadata)))[0] == "NOT_FOUND"
            wrong = infer_request(deployment.deployment_id, b"no image")
            assert (await refused(stub.ModelInfer(wrong, metadata=metadata)))[1].reason == "IMAGE_REFUSED"
            large = infer_request(deployment.deployment_id, jpeg(180) + bytes(MAX_IMAGE_BYTES))
            status, error = await refused(stub.ModelInfer(large, metadata=metadata))
            assert (status, error.reason) == ("INVALID_ARGUMENT", "IMAGE_REFUSED")
            assert f"more than {MAX_IMAGE_BYTES}" in error.message
            # KServe's other way to carry bytes, which other clients use.
            typed = infer_request(deployment.deployment_id, jpeg(180))
            typed.ClearField("raw_input_contents")
            typed.inputs[0].contents.bytes_contents.append(jpeg(180))
            assert (await stub.ModelInfer(typed, metadata=metadata)).model_name == deployment.deployment_id


def _use_plain_client(url: str, headers: dict[str, str], model: str) -> None:
    client = tritonclient.grpc.InferenceServerClient(url)
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready(model, headers=headers)
    assert client.get_model_metadata(model, headers=headers).inputs[0].name == "IMAGE"
    config = client.get_model_config(model, headers=headers).config
    assert config.max_batch_size == 8
    assert {name: json.loads(item.string_value) for name, item in config.parameters.items()} == {
        "classes": ["dark", "bright"]
    }
    assert [output.name for output in config.output] == ["BOXES", "SCORES", "LABELS", "COUNT"]
    image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg(180, 64, 64)]], dtype=object))
    result = client.infer(model, [image], headers=headers)
    assert result.as_numpy("BOXES").shape == (1, 2, 4)
    assert result.as_numpy("SCORES")[0].tolist() == pytest.approx([180 / 255, 75 / 255], abs=0.01)
    assert result.as_numpy("LABELS").tolist() == [[1, 0]]
    assert result.as_numpy("COUNT").tolist() == [[2]]
    assert result.get_response().model_name == model
    with pytest.raises(InferenceServerException, match="not REPORT"):
        client.infer(model, [image], headers=headers, outputs=[tritonclient.grpc.InferRequestedOutput("REPORT")])
    with pytest.raises(InferenceServerException, match="no deployment"):
        client.infer(new_id(), [image], headers=headers)
    client.close()


async def test_an_image_that_is_none_or_too_large_is_refused_and_a_turned_one_has_its_upright_size(
    world: Online,
) -> None:
    async with world.serving():
        active = await world.active()
        png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (8001).to_bytes(4, "big") * 2
        for image in (b"no image", png, jpeg(9)[:20]):
            status, error = await refused(world.predict(active, image))
            assert (status, error.reason) == ("INVALID_ARGUMENT", "IMAGE_REFUSED")
        plain = jpeg(200, 90, 40)
        # A minimal EXIF segment with orientation 6: turned by 90°.
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
        answer = await world.predict(active, turned)
        assert (answer.width, answer.height) == (40, 90)
        assert max(found.x2 for found in answer.detections) <= 40
        assert max(found.y2 for found in answer.detections) > 60


async def test_a_token_that_asks_too_fast_is_refused_at_once_and_others_are_served(world: Online) -> None:
    async with world.serving(token_requests_per_s=0.1):
        active = await world.active()
        account_id = active.account_id
        request = publishing_pb2.PredictRequest(deployment_id=active.deployment_id, image=jpeg(180))
        token, other, third = (world.owner(account_id) for _ in range(3))
        await world.publishing.Predict(request, metadata=token)
        status, error = await refused(world.publishing.Predict(request, metadata=token))
        assert (status, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert 0 < float(error.metadata["retry_after_s"]) <= 10
        assert (await world.publishing.Predict(request, metadata=other)).detections
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await stub.ModelInfer(infer_request(active.deployment_id, jpeg(180)), metadata=third)
            call = stub.ModelInfer(infer_request(active.deployment_id, jpeg(180)), metadata=third)
            assert (await refused(call))[1].reason == "RATE_LIMITED"


async def test_each_image_of_a_kserve_request_is_a_request_to_the_tokens_limits_and_so_is_one_that_is_wrong(
    world: Online,
) -> None:
    async with world.serving(token_requests_per_s=0.1):
        active = await world.active()
        account_id = active.account_id
        eight = infer_request(active.deployment_id, *[jpeg(180)] * 8)
        nine = infer_request(active.deployment_id, *[jpeg(180)] * 9)
        cut = infer_request(active.deployment_id, jpeg(180))
        cut.raw_input_contents[0] = cut.raw_input_contents[0][:-1]
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for wrong in (nine, cut):
                token = world.owner(account_id)
                assert (await refused(stub.ModelInfer(wrong, metadata=token)))[1].reason == "IMAGE_REFUSED"
                assert (await refused(stub.ModelInfer(wrong, metadata=token)))[1].reason == "RATE_LIMITED"
            token = world.owner(account_id)
            answer = await stub.ModelInfer(eight, metadata=token)
            assert answer.outputs[0].shape[0] == 8
            error = (await refused(stub.ModelInfer(eight, metadata=token)))[1]
            assert error.reason == "RATE_LIMITED"
            assert 20 < float(error.metadata["retry_after_s"]) <= 80


async def test_more_requests_than_may_be_in_flight_are_refused_at_once(
    world: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serving():
        active = await world.active()
        go_on, forward = asyncio.Event(), TritonClient.forward

        async def wait(triton: TritonClient, request: pb.ModelInferRequest, timeout_s: float) -> pb.ModelInferResponse:
            await go_on.wait()
            return await forward(triton, request, timeout_s)

        # Not by stopping its process: a Triton that finds one stopped for a second may crash when it goes on.
        monkeypatch.setattr(TritonClient, "forward", wait)
        calls = [asyncio.ensure_future(world.predict(active, jpeg(180))) for _ in range(33)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert len(waiting) == 32
        status, error = await refused(done.pop())
        assert (status, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
        go_on.set()
        assert all(answer.detections for answer in await asyncio.gather(*waiting))


@pytest.mark.parametrize("call", sorted(SERVED.keys() - {"ModelInfer"}))
async def test_a_kserve_call_without_an_image_is_a_request_to_the_tokens_limits_too(world: Online, call: str) -> None:
    async with world.serving(token_requests_per_s=0.1):
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        of_model = {"name": created.deployment_id} if call.startswith("Model") else {}
        request = getattr(pb, f"{call}Request")(**of_model)
        token, other = world.owner(account_id), world.owner(account_id)
        async with grpc.aio.insecure_channel(world.address) as channel:
            ask = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), call)
            await ask(request, metadata=token)
            status, error = await refused(ask(request, metadata=token))
            assert (status, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
            await ask(request, metadata=other)
        predict = publishing_pb2.PredictRequest(deployment_id=created.deployment_id, image=jpeg(180))
        assert (await refused(world.publishing.Predict(predict, metadata=token)))[1].reason == "RATE_LIMITED"
