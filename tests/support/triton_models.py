"""A model without a network for tests of Triton: what the image's bytes say decides what happens.

Its contract is that of saucer.serving: IMAGE -> BOXES, SCORES, LABELS, COUNT. `3` answers three boxes, each
[0, 1, 2, 3], score 0.5 and the model's version as the label; `pid` answers one box whose label is the process that
serves; `wait FOLDER` opens the named pipe FOLDER/began for writing, FOLDER/go for reading, and then answers no box;
`refuse` refuses the image; `raise` raises.
"""

from pathlib import Path

from saucer.publishing.repository import write_version

_ECHO = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(r, "IMAGE").as_numpy().reshape(-1)[0]) for r in requests]

    def answer(self, image):
        if image == b"refuse":
            error = pb_utils.TritonError("IMAGE: not an image", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        if image == b"raise":
            raise ValueError("a fault of the model")
        if image.startswith(b"wait "):
            for pipe, mode in (("began", "w"), ("go", "r")):
                open(os.path.join(image[5:].decode(), pipe), mode).close()
            image = b"0"
        label, count = (os.getpid(), 1) if image == b"pid" else (self.version, int(image))
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("BOXES", np.tile(np.arange(4, dtype=np.float32), (1, count, 1))),
            pb_utils.Tensor("SCORES", np.full((1, count), 0.5, np.float32)),
            pb_utils.Tensor("LABELS", np.full((1, count), label, np.int32)),
            pb_utils.Tensor("COUNT", np.array([[count]], np.int32)),
        ])
"""
_BROKEN = 'raise ImportError("a fault at load")'


def echo_config(model: str, versions: list[int]) -> str:
    """config.pbtxt of the echo model, serving these versions."""
    return f"""name: "{model}"
backend: "python"
max_batch_size: 8
input [ {{ name: "IMAGE", data_type: TYPE_STRING, dims: [ 1 ] }} ]
output [
  {{ name: "BOXES", data_type: TYPE_FP32, dims: [ -1, 4 ] }},
  {{ name: "SCORES", data_type: TYPE_FP32, dims: [ -1 ] }},
  {{ name: "LABELS", data_type: TYPE_INT32, dims: [ -1 ] }},
  {{ name: "COUNT", data_type: TYPE_INT32, dims: [ 1 ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
version_policy {{ specific {{ versions: {versions} }} }}
"""


def write_echo(
    repository: Path,
    model: str,
    version: int,
    scratch: Path,
    *,
    broken: bool = False,
    versions: list[int] | None = None,
) -> None:
    """Writes a version of the echo model, and a configuration that serves `versions` (only this one if left out).

    A broken one raises when it is loaded. Sources are laid out under `scratch`.
    """
    source = scratch / ("broken" if broken else "echo")
    source.mkdir(parents=True, exist_ok=True)
    (source / "triton_model.py").write_text(_BROKEN if broken else _ECHO)
    for name in ("model.onnx", "model.json"):
        (source / name).write_text("{}")
    config = echo_config(model, versions or [version])
    write_version(repository, model, version, files=source, serving_source=source, config=config)
