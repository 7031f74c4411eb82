"""What a KServe request says, before Triton gets any of it."""

from collections.abc import Sequence

import pytest
from tritonclient.grpc import service_pb2 as pb

from saucer.lib.errors import InvalidArgumentError
from saucer.publishing.kserve import read_query
from saucer.publishing.triton import LENGTH_BYTES


def request(images: Sequence[bytes], shape: Sequence[int], *, raw: bool) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=shape)
    made = pb.ModelInferRequest(inputs=[tensor])
    if raw:
        made.raw_input_contents.append(
            b"".join(len(image).to_bytes(LENGTH_BYTES, "little") + image for image in images)
        )
    else:
        made.inputs[0].contents.bytes_contents.extend(images)
    return made


@pytest.mark.parametrize("raw", [False, True])
def test_images_are_read_whether_they_come_raw_or_not(raw: bool) -> None:
    read = read_query(request([b"one", b"two"], [2, 1], raw=raw))
    assert read.images == (b"one", b"two")
    assert list(read.request.inputs[0].shape) == [2, 1]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("shape", [[], [2], [1, 2], [1, 1], [3, 1], [2, 1, 1], [-1, 1], [2**62, 1]])
def test_a_shape_that_is_not_that_of_the_images_is_refused(shape: list[int], raw: bool) -> None:
    with pytest.raises(InvalidArgumentError, match=r"the shape \[n, 1\]; there are 2"):
        read_query(request([b"one", b"two"], shape, raw=raw))


@pytest.mark.parametrize("raw", [False, True])
def test_a_request_without_an_image_is_refused(raw: bool) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        read_query(request([], [0, 1], raw=raw))
