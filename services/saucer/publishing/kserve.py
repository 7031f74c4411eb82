"""KServe v2 at publishing's own port: any Triton client calls a deployment by its id, with a token in its headers.

https://github.com/kserve/open-inference-protocol. Triton itself is private, since its control and shared-memory calls
are code execution for whoever reaches them. So only the calls of SERVED exist here, all others are UNIMPLEMENTED; and a
request to Triton is made anew, from nothing but a name, a shape and the image's bytes. Each call is a request to the
token's limits (limits.py), one for each image where there are images.
"""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import json
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.v1 import access_pb2
from saucer.publishing.endpoint import Endpoint, Query, sides
from saucer.publishing.fleet import Fleet
from saucer.publishing.triton import LENGTH_BYTES
from saucer.serving.detector import MAX_BATCH
from saucer.serving.triton_config import config_pbtxt

SERVED = {
    "ServerLive": "server_live",
    "ServerReady": "server_ready",
    "ServerMetadata": "server_metadata",
    "ModelReady": "model_ready",
    "ModelMetadata": "model_metadata",
    "ModelConfig": "model_config",
    "ModelInfer": "model_infer",
}
INPUT = "IMAGE"
OUTPUTS = {
    "BOXES": ("FP32", [-1, -1, 4]),
    "SCORES": ("FP32", [-1, -1]),
    "LABELS": ("INT32", [-1, -1]),
    "COUNT": ("INT32", [-1, 1]),
}
_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def servicer(endpoint: Endpoint, fleet: Fleet) -> Servicer:
    """What main.py serves."""
    return Servicer(_KServe(endpoint, fleet), _register, _DESCRIPTOR, access=access_pb2.ACCESS_VIEWER)


def _register(implementation: object, server: grpc.aio.Server) -> None:
    """Registers what is SERVED, instead of everything as the generated function does."""
    handlers = {name: _handler(implementation, _DESCRIPTOR.methods_by_name[name]) for name in SERVED}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_DESCRIPTOR.full_name, handlers),))


def _handler(implementation: object, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        getattr(implementation, SERVED[method.name]),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


class _KServe:
    def __init__(self, endpoint: Endpoint, fleet: Fleet) -> None:
        self._endpoint = endpoint
        self._fleet = fleet

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        self._endpoint.admit()
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        self._endpoint.admit()
        return pb.ServerReadyResponse(ready=await self._fleet.live())

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        self._endpoint.admit()
        return pb.ServerMetadataResponse(name="saucer", version="1")

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        self._endpoint.admit()
        deployment, side = await self._endpoint.find_side(request.name, request.version)
        ready = deployment.answers and (side is None or bool(side.places))
        return pb.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        self._endpoint.admit()
        deployment, _ = await self._endpoint.find_side(request.name, request.version)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=deployment.deployment_id,
            versions=[str(side.version.number) for side in sides(deployment)],
            platform="saucer",
            inputs=[tensor(name=INPUT, datatype="BYTES", shape=[-1, 1])],
            outputs=[tensor(name=name, datatype=kind, shape=shape) for name, (kind, shape) in OUTPUTS.items()],
        )

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        self._endpoint.admit()
        deployment, side = await self._endpoint.find_side(request.name, request.version)
        version = side.version if side else deployment.version
        text = config_pbtxt(deployment.deployment_id, version=version.number)
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        # What else there is, is between publishing and the model.
        shown = [output for output in config.output if output.name in OUTPUTS]
        del config.output[:]
        config.output.extend(shown)
        config.parameters.clear()
        # By LABELS, as JSON: a name may have any character in it.
        config.parameters["classes"].string_value = json.dumps(version.classes, ensure_ascii=False)
        return pb.ModelConfigResponse(config=config)

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await self._endpoint.infer(
            request.model_name,
            request.model_version,
            request.ByteSize(),
            lambda: read_query(request),
            context.time_remaining(),
        )


def read_query(request: pb.ModelInferRequest) -> Query:
    """The request made anew, and its images.

    Raises InvalidArgumentError for what is not one input of images, each in a row of its own, and known outputs.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT or request.inputs[0].datatype != "BYTES":
        raise InvalidArgumentError("INPUT_UNKNOWN", f"inputs: there is one, {INPUT}, of BYTES.")
    given = request.inputs[0]
    # Parameters of tensors are how shared memory is referred to, which is memory of Triton's machine.
    if given.parameters or any(output.parameters for output in request.outputs):
        raise InvalidArgumentError("PARAMETERS_REFUSED", "inputs, outputs: tensors take no parameters here.")
    unknown = [output.name for output in request.outputs if output.name not in OUTPUTS]
    if unknown:
        raise InvalidArgumentError(
            "OUTPUT_UNKNOWN", f"outputs: there are {', '.join(OUTPUTS)}; not {unknown[0][:100]}."
        )
    inner = pb.ModelInferRequest(
        id=request.id,
        inputs=[pb.ModelInferRequest.InferInputTensor(name=INPUT, datatype="BYTES", shape=given.shape)],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output.name) for output in request.outputs],
        raw_input_contents=request.raw_input_contents,
    )
    if request.raw_input_contents:
        images = _strings(request.raw_input_contents)
    else:
        images = list(given.contents.bytes_contents)
        inner.inputs[0].contents.bytes_contents.extend(images)
    if len(images) > MAX_BATCH:
        raise InvalidArgumentError("IMAGE_REFUSED", f"{INPUT}: one request has at most {MAX_BATCH} images.")
    if not images or list(given.shape) != [len(images), 1]:
        raise InvalidArgumentError(
            "SHAPE_REFUSED", f"{INPUT}: n images, at least one, have the shape [n, 1]; there are {len(images)}."
        )
    return Query(inner, tuple(images))


def _strings(contents: Sequence[bytes]) -> list[bytes]:
    """The images in KServe's raw form, each after its length; of more than MAX_BATCH the first ones.

    Raises InvalidArgumentError if they do not fit their lengths.
    """
    data, at = b"".join(contents), 0
    found: list[bytes] = []
    while at < len(data) and len(found) <= MAX_BATCH:
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "little")
        found.append(data[begin:at])
    if at > len(data):
        raise InvalidArgumentError("IMAGE_REFUSED", f"{INPUT}: the images do not have the lengths that they state.")
    return found
