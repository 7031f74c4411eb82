"""A client of one Triton server: health, loading, inference, with a deadline on every call and typed errors.

Raw KServe messages, since tritonclient's objects add nothing here. Shared memory is not used: on a server that is
reached over a network it is a way into its memory.
"""

import asyncio
import contextlib
import json
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from saucer.lib.rounds import INTERRUPTIONS
from saucer.publishing.batching import Counters
from saucer.publishing.domain import LogLine
from saucer.serving.choosing import Choice
from saucer.serving.runtime import EVALUATED_WITH

HEALTH_S = 2.0  # a server that does not answer by then counts as unavailable
LOAD_S = 120.0  # a model that has not loaded by then has failed
UNLOAD_S = 30.0  # for the call itself, which waits for loads of the same model
DRAIN_S = 10.0  # how long unload waits for requests in flight; then they go on without it
INFER_S = 10.0
POLL_S = 0.05
MAX_MESSAGE_BYTES = 64 * 2**20  # a larger answer is refused by gRPC
CONTROL_HEADER = "triton-grpc-protocol-saucer-control"

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # By default a channel waits up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_OUTPUT_TYPES = {"BOXES": np.float32, "SCORES": np.float32, "LABELS": np.int32, "COUNT": np.int32}
LENGTH_BYTES = 4  # of a string in KServe's raw form, before its bytes
_CLOSED = "it is not registered at this address any more"
_AT_REST = ("", "UNAVAILABLE")  # states of a version that holds nothing


class TritonError(Exception):
    """Base of what this client raises; `reason` is one sentence, for operators."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TritonUnavailable(TritonError):  # noqa: N818 - a state of the server, not a fault of the call
    """The server does not answer, or not to us. Says nothing about the model; trying again later makes sense."""


# What a round meets while a Triton, or what else it needs, is away for some time.
AWAY = (*INTERRUPTIONS, TritonError)


class ModelFailed(TritonError):  # noqa: N818 - a finding about the model
    """The server answers, the model does not: not loaded, failed to load, process dead, or too slow."""


class InferRefused(TritonError):  # noqa: N818 - a finding about the request
    """The model is well and refuses this request, for instance because its bytes are no image."""


@dataclass(frozen=True)
class Boxes:
    """What a model finds in one image, best first: `boxes` float32 [n, 4] as x1 y1 x2 y2 in pixels of the source image,
    `scores` float32 [n], `labels` int32 [n] (indices of classes).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    version: str  # the version that answered


@dataclass(frozen=True)
class Report:
    """What the process says that serves a model: with which runtime, and its last log lines (serving/journal.py)."""

    process: str
    choice: Choice
    lines: tuple[LogLine, ...]


@dataclass(frozen=True)
class ModelState:
    """A version of a model as Triton sees it. A version never told to load has version and state ''."""

    model: str
    version: str
    state: str  # READY, LOADING, UNLOADING, UNAVAILABLE or ''
    reason: str


class TritonClient:
    """Speaks to the server at `address` (host:port, gRPC). `control_key` opens load, unload and index.

    Belongs to the event loop in which it is made; close it, or use it as an async context manager.
    """

    def __init__(self, address: str, control_key: str = "") -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._control = ((CONTROL_HEADER, control_key),)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace_s: float | None = None) -> None:
        """What is not answered within `grace_s`, and what is asked from now on, raises TritonUnavailable."""
        self._closed = True
        await self._channel.close(grace_s)

    async def live(self, timeout_s: float = HEALTH_S) -> bool:
        """Whether the server answers, or does so within `timeout_s`. Never raises for a server that does not.

        After a restart of the server, a first live() spares the next calls the channel's wait before it reconnects.
        """
        try:
            answer = await self._ask(
                self._stub.ServerLive, pb.ServerLiveRequest(), timeout=timeout_s, wait_for_ready=True
            )
        except (grpc.aio.AioRpcError, TritonUnavailable):
            return False
        return bool(answer.live)

    async def load(self, model: str, timeout_s: float = LOAD_S) -> None:
        """Makes Triton serve the versions that the model's config.pbtxt on disk names, and then no others.

        Versions that serve already go on without a gap, also when another fails. Raises ModelFailed, TritonUnavailable.
        """
        request = pb.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._ask(self._stub.RepositoryModelLoad, request, timeout=timeout_s, metadata=self._control)
        except grpc.aio.AioRpcError as error:
            raise await self._control_error(error, f"{model} did not load within {timeout_s:g} s") from error

    async def unload(self, model: str, drain_s: float = DRAIN_S) -> bool:
        """Ends every version of the model: no new request is taken, those in flight are answered.

        True once they are gone, False if some were left after `drain_s`. A model whose process died while it had
        requests drains for ever in Triton 2.51; it can be loaded again all the same. A model that is not loaded is no
        error. Raises ModelFailed, TritonUnavailable.
        """
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        try:
            await self._ask(self._stub.RepositoryModelUnload, request, timeout=UNLOAD_S, metadata=self._control)
        except grpc.aio.AioRpcError as error:
            raise await self._control_error(error, f"{model} did not unload within {UNLOAD_S:g} s") from error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while True:
                    states = [entry.state for entry in await self.index() if entry.model == model]
                    if all(state in _AT_REST for state in states):
                        return True
                    await asyncio.sleep(POLL_S)
        return False

    async def index(self, timeout_s: float = HEALTH_S) -> list[ModelState]:
        """Every model in the repository with its versions' states. Raises TritonUnavailable."""
        request = pb.RepositoryIndexRequest()
        try:
            answer = await self._ask(self._stub.RepositoryIndex, request, timeout=timeout_s, metadata=self._control)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailable(_sentence(error)) from error
        return [ModelState(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]

    async def ready(self, model: str, version: str = "", timeout_s: float = HEALTH_S) -> bool:
        """Whether Triton calls it ready; it also does so of a model whose process is dead, see probe.

        Raises TritonUnavailable.
        """
        request = pb.ModelReadyRequest(name=model, version=version)
        try:
            answer = await self._ask(self._stub.ModelReady, request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailable(_sentence(error)) from error
        return bool(answer.ready)

    async def infer(self, model: str, image: bytes, version: str = "", timeout_s: float = INFER_S) -> Boxes:
        """What the model finds in a JPEG or PNG. Without a version, the highest loaded one answers.

        Raises InferRefused, ModelFailed, TritonUnavailable.
        """
        return _boxes(await self.forward(_infer_request(model, image, version), timeout_s))

    async def report(self, model: str, version: str = "", timeout_s: float = INFER_S) -> Report:
        """What one process says that serves the model; nothing, if it was written before models made reports.

        Raises ModelFailed, TritonUnavailable.
        """
        request = _infer_request(model, b"", version)
        request.outputs.add(name="REPORT")
        try:
            answer = await self.forward(request, timeout_s)
        except InferRefused:  # it has no such output, or takes the request for an image
            return Report("", Choice(EVALUATED_WITH), ())
        fields = json.loads(answer.raw_output_contents[0][LENGTH_BYTES:])
        # One that was written by former code does not say which failed: each may, and is measured again.
        failed = fields.get("failed", list(fields["unusable"]))
        choice = Choice(fields["runtime"], fields["measured_ms"], fields["unusable"], failed)
        return Report(fields["process"], choice, tuple(map(_line, fields["lines"])))

    async def counters(self, timeout_s: float = HEALTH_S) -> dict[str, Counters]:
        """What the server has counted of each model since it loaded it. Raises TritonUnavailable."""
        try:
            answer = await self._ask(self._stub.ModelStatistics, pb.ModelStatisticsRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailable(_sentence(error)) from error
        found: dict[str, Counters] = {}
        for model in answer.model_stats:
            queue = model.inference_stats.queue
            counted = Counters(model.inference_count, model.execution_count, queue.count, queue.ns // 1000)
            found[model.name] = found.get(model.name, Counters()).plus(counted)
        return found

    async def forward(self, request: pb.ModelInferRequest, timeout_s: float = INFER_S) -> pb.ModelInferResponse:
        """Triton's own answer to a KServe request. Raises InferRefused, ModelFailed, TritonUnavailable."""
        try:
            return await self._ask(self._stub.ModelInfer, request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _infer_error(error, timeout_s) from error

    async def probe(self, model: str, image: bytes, version: str = "", timeout_s: float = INFER_S) -> str | None:
        """Judges a model by a real inference of an image that it is known to read: None if it serves, else why not.

        Raises TritonUnavailable if nothing can be said about the model.
        """
        try:
            await self.infer(model, image, version, timeout_s)
        except (ModelFailed, InferRefused) as error:
            return error.reason
        return None

    async def _ask(self, method: Any, request: Message, **options: Any) -> Any:
        """Raises grpc.aio.AioRpcError; TritonUnavailable, where this client is or was closed."""
        try:
            return await method(request, **options)
        except grpc.aio.UsageError as error:
            raise TritonUnavailable(_CLOSED) from error
        except asyncio.CancelledError as error:
            # A channel that is closed cancels its calls, and not the tasks that wait for them.
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
            raise TritonUnavailable(_CLOSED) from error

    async def _control_error(self, error: grpc.aio.AioRpcError, late: str) -> TritonError:
        match error.code():
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return TritonUnavailable(_sentence(error))
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                # A model that ends its process while loading blocks its name for good, and only its name.
                return ModelFailed(late) if await self.live() else TritonUnavailable(late)
            case _:
                return ModelFailed(_sentence(error))


def _line(fields: dict[str, Any]) -> LogLine:
    logged_at = datetime.fromtimestamp(fields["time_s"], UTC)
    return LogLine(fields["number"], fields["level"], fields["message"], logged_at)


def _infer_request(model: str, image: bytes, version: str) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1, 1])
    content = struct.pack("<I", len(image)) + image  # KServe's raw form of a string: its length, then its bytes
    return pb.ModelInferRequest(model_name=model, model_version=version, inputs=[tensor], raw_input_contents=[content])


def _boxes(answer: pb.ModelInferResponse) -> Boxes:
    arrays = {
        output.name: np.frombuffer(content, _OUTPUT_TYPES[output.name]).reshape(tuple(output.shape))
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        if output.name in _OUTPUT_TYPES
    }
    if missing := _OUTPUT_TYPES.keys() - arrays:
        raise ModelFailed(f"{answer.model_name} answers without {', '.join(sorted(missing))}")
    count = int(arrays["COUNT"].reshape(-1)[0])
    boxes, scores, labels = (arrays[name][0, :count] for name in ("BOXES", "SCORES", "LABELS"))
    return Boxes(boxes, scores, labels, answer.model_version)


def _infer_error(error: grpc.aio.AioRpcError, timeout_s: float) -> TritonError:
    reason = _sentence(error)
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InferRefused(reason)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelFailed(f"no answer within {timeout_s:g} s")
        case grpc.StatusCode.UNAVAILABLE if "unknown model" not in reason:  # Triton's word for a version not ready
            return TritonUnavailable(reason)
        case grpc.StatusCode.CANCELLED:
            return TritonUnavailable(reason)
        case _:
            return ModelFailed(reason)


def _sentence(error: grpc.aio.AioRpcError) -> str:
    # Triton appends the traceback of the model's Python after a blank line; its log has it too.
    return (error.details() or error.code().name).partition("\n\n")[0].strip()
