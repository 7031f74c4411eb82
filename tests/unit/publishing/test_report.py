"""What the process says that serves a model, as publishing reads it."""

import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from saucer.publishing.triton import TritonClient

SAID = {
    "process": "p",
    "runtime": "onnxruntime",
    "measured_ms": {},
    "unusable": {"openvino": "it is lacking, or has failed"},
    "lines": [],
}


@pytest.fixture
async def client() -> AsyncIterator[TritonClient]:
    async with TritonClient("127.0.0.1:1") as made:
        yield made


@pytest.mark.parametrize(
    ("said", "failed"),
    [(SAID, ["openvino"]), (SAID | {"failed": []}, []), (SAID | {"failed": ["openvino"]}, ["openvino"])],
)
async def test_of_a_process_that_does_not_say_which_runtimes_failed_all_that_are_unusable_may_have(
    client: TritonClient, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], failed: list[str]
) -> None:
    async def forward(*_: object) -> pb.ModelInferResponse:
        content = json.dumps(said).encode()
        return pb.ModelInferResponse(raw_output_contents=[struct.pack("<I", len(content)) + content])

    monkeypatch.setattr(client, "forward", forward)
    assert list((await client.report("cups")).choice.failed) == failed
