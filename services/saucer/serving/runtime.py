"""The runtimes that compute the graph, on a processor or a GPU.

`onnxruntime` is the one that evaluations are made with. The others may serve in its place where they are faster and
their boxes stay within TOLERANCES (choosing.py): `openvino` computes in the same 32 bits, `openvino_bf16` in bfloat16
where the processor has it. On the first GPU that CUDA_VISIBLE_DEVICES shows `onnxruntime_cuda` computes in 32 bits, and
`onnxruntime_tensorrt` in 16 where TensorRT has the operation, else as the former. Both are unproven (tests/gpu).

Tried with RTMDet over EfficientNet-Lite0 at 192 px, trained to a mAP@0.50 of 0.91, on 160 images of 640 px with 15,400
boxes that score 0.05 or more: `openvino` is at most 0.0002 px of the input and 0.000002 of a score from `onnxruntime`.
Of `openvino_bf16`'s boxes half are within 0.17 px, 97 % within its tolerance; the rest are those of which suppression
keeps another of several that overlap. Its mAP@0.50:0.95 is 0.540 for 0.538. Of a detector that was hardly trained,
whose boxes overlap more, 96.4 % of 34,900 boxes are (test_served_images.py, 500 images), and all of `openvino`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .engines import Engines
from .errors import ModelFolderError, RuntimeUnusable

INPUT_NAME = "image"
OUTPUT_NAMES = ("boxes", "scores")
EVALUATED_WITH = "onnxruntime"

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
Compute = Callable[[NDArray[np.uint8]], Outputs]
Provider = tuple[str, Mapping[str, str]]
"""One of ONNX Runtime's, and its settings."""


@dataclass(frozen=True)
class Tolerance:
    """How far a served box may be from the evaluated one: each side in pixels of the model's input (times the image's
    scale, where the image is larger), and the score. Of a thousand boxes, so many have to be that near."""

    box_px: float
    score: float
    permille: int


TOLERANCES: Mapping[str, Tolerance] = {
    "onnxruntime": Tolerance(box_px=1e-3, score=1e-3, permille=995),
    "openvino": Tolerance(box_px=1e-3, score=1e-3, permille=995),
    "openvino_bf16": Tolerance(box_px=1.0, score=0.02, permille=950),
    # Sums in another order, as for openvino, over cuDNN's own algorithms.
    "onnxruntime_cuda": Tolerance(box_px=0.01, score=1e-3, permille=995),
    # As for openvino_bf16, whose 16 bits are the coarser ones.
    "onnxruntime_tensorrt": Tolerance(box_px=1.0, score=0.02, permille=950),
}
RUNTIMES = ("onnxruntime", "openvino", "openvino_bf16")
"""To choose from where there is no GPU."""
GPU_RUNTIMES = ("onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt")
"""To choose from where there is one. TensorRT last: where its engines take longer than a trial, another serves."""


class Network:
    """`image` uint8 [n, size, size, 3] in BGR order → `boxes` [n, anchors, 4] xyxy, `scores` [n, anchors, classes]."""

    def __init__(self, path: Path, threads: int, runtime: str = EVALUATED_WITH) -> None:
        """Raises ModelFolderError if the file is no such graph, RuntimeUnusable if this machine lacks the runtime."""
        self._compute = _LOADERS[runtime](path, threads)

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        boxes, scores = self._compute(images)
        return np.asarray(boxes, np.float32), np.asarray(scores, np.float32)


_CPU: Provider = ("CPU", {})
# By default its convolutions round their inputs to 10 bits.
_CUDA: Provider = ("CUDA", {"use_tf32": "0"})


def _onnxruntime(path: Path, threads: int, first: Provider = _CPU, *others: Provider) -> Compute:
    """With a provider of ONNX Runtime's; what it has no operation for is computed by the others."""
    # Here: services read detections with this package, and their image has no runtime.
    import onnxruntime  # noqa: PLC0415 - heavy, and not in every process

    providers = [(f"{name}ExecutionProvider", settings) for name, settings in (first, *others)]
    if providers[0][0] not in onnxruntime.get_available_providers():
        raise RuntimeUnusable(f"this build of ONNX Runtime has no {first[0]}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the processor from a training job or a second instance beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # By default it falls back to others where one raises, as for want of memory, which may pass.
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ModelFolderError(f"{path.name} cannot be loaded: {error}") from error
    # What it does not find it leaves to others, and only its log says so.
    if session.get_providers()[0] != providers[0][0]:
        raise RuntimeUnusable(f"ONNX Runtime cannot use {first[0]} on this machine")
    _check_names(path, [item.name for item in session.get_inputs()], [item.name for item in session.get_outputs()])

    def compute(images: NDArray[np.uint8]) -> Outputs:
        boxes, scores = session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
        return boxes, scores

    return compute


def _tensorrt(path: Path, threads: int) -> Compute:
    engines = Engines(path)
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(engines.folder)}
    run = _onnxruntime(path, threads, ("Tensorrt", {"trt_fp16_enable": "1", **cache}), _CUDA)
    batches: list[int] = []

    def compute(images: NDArray[np.uint8]) -> Outputs:
        outputs = run(images)
        # It makes its engine anew for a batch outside of those that it has met, and has written it once it answers.
        if not batches or not min(batches) <= len(images) <= max(batches):
            batches.append(len(images))
            engines.keep()
        return outputs

    return compute


def _openvino(path: Path, threads: int, precision: str) -> Compute:
    try:
        import openvino  # noqa: PLC0415 - as above
    except ImportError as error:
        raise RuntimeUnusable("OpenVINO is not installed") from error
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeUnusable("this processor does not compute in bfloat16")
    settings = {
        # Its own choice would be bfloat16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinned, the threads of all models would share the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = core.compile_model(str(path), "CPU", settings)
    except Exception as error:  # OpenVINO's errors have no common base
        raise ModelFolderError(f"{path.name} cannot be loaded: {error}") from error
    _check_names(path, *([port.get_any_name() for port in ports] for ports in (compiled.inputs, compiled.outputs)))
    request = compiled.create_infer_request()
    outputs = [compiled.output(name) for name in OUTPUT_NAMES]

    def compute(images: NDArray[np.uint8]) -> Outputs:
        found = request.infer({INPUT_NAME: images})
        boxes, scores = (found[output] for output in outputs)
        return boxes, scores

    return compute


def _check_names(path: Path, inputs: list[str], outputs: list[str]) -> None:
    if (inputs, outputs) != ([INPUT_NAME], list(OUTPUT_NAMES)):
        raise ModelFolderError(
            f"{path.name} has inputs and outputs {(inputs, outputs)}, not {INPUT_NAME} and {OUTPUT_NAMES}"
        )


_LOADERS: Mapping[str, Callable[[Path, int], Compute]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime_cuda": lambda path, threads: _onnxruntime(path, threads, _CUDA),
    "onnxruntime_tensorrt": _tensorrt,
    "openvino": lambda path, threads: _openvino(path, threads, "f32"),
    "openvino_bf16": lambda path, threads: _openvino(path, threads, "bf16"),
}
