"""A tiny real ONNX graph with the inputs and outputs of a model folder."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from saucer.serving.spec import GRAPH_FILE, SPEC_FILE, ModelSpec

SPEC = ModelSpec(classes=("dark", "bright"), input_size=64)


def hanging_graph(spec: ModelSpec = SPEC) -> bytes:
    """A graph that is valid, and counts for ever before it answers."""
    count = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["counted", "counted"], ["counted_on"]),
        ],
        "count",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted", TensorProto.FLOAT, ["n", "a", 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted_on", TensorProto.FLOAT, ["n", "a", 2]),
        ],
    )
    size = spec.input_size
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Slice", ["float", "zeros", "ends", "axes"], ["corner"]),
            helper.make_node("Squeeze", ["corner", "last"], ["begin"]),
            helper.make_node("Loop", ["rounds", "yes", "begin"], ["scores"], body=count),
            helper.make_node("Concat", ["scores", "scores"], ["boxes"], axis=2),
        ],
        "hanging",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", "a", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "a", 2]),
        ],
        [
            numpy_helper.from_array(np.array(values), name)
            for name, values in {
                "rounds": 2**62,
                "yes": True,
                "zeros": [0, 0, 0],
                "ends": [1, 2, 1],
                "axes": [1, 2, 3],
                "last": [3],
            }.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_model(folder: Path, spec: ModelSpec = SPEC) -> Path:
    """A model that finds one box, in the middle of the input; its scores are the mean brightness b and 1 - b."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Div", ["mean", "white"], ["level"]),
        helper.make_node("Squeeze", ["level", "last"], ["bright"]),  # [n, 1, 1]
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["scores"], axis=2),
        helper.make_node("Mul", ["bright", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "box"], ["boxes"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "white": np.array(255, np.float32),
        "last": np.array([3], np.int64),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
        "box": np.array([[[16, 16, 48, 48]]], np.float32),
    }
    size = spec.input_size
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", "a", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "a", 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / GRAPH_FILE))
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    return folder
