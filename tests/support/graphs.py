"""Tiny real ONNX graphs with the inputs and outputs of a model folder."""

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
    return _write(folder, spec, nodes, "brightness", constants)


def write_cells_model(folder: Path, spec: ModelSpec = SPEC) -> Path:
    """A model that finds each of its 8 × 8 cells, wider by the cell's blue and red, higher by its green.

    Blue and green are the scores, so that every pixel of an image moves a box or a score.
    """
    size, cells = spec.input_size, 8
    side = size // cells
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[side, side], strides=[side, side]),
        helper.make_node("Div", ["means", "white"], ["levels"]),
        helper.make_node("Reshape", ["levels", "rows"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["colours"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["colours", "first", "third", "last"], ["scores"]),
        helper.make_node("MatMul", ["colours", "growth"], ["grown"]),
        helper.make_node("Add", ["grown", "cells"], ["boxes"]),
    ]
    corners = [[side * x, side * y, side * (x + 1), side * (y + 1)] for y in range(cells) for x in range(cells)]
    constants: dict[str, NDArray[Any]] = {
        "white": np.array(255, np.float32),
        "rows": np.array([0, 3, cells * cells], np.int64),
        "first": np.array([0], np.int64),
        "third": np.array([2], np.int64),
        "last": np.array([2], np.int64),
        "growth": np.array([[-side, 0, 0, 0], [0, -side, 0, side], [0, 0, side, 0]], np.float32),
        "cells": np.array([corners], np.float32),
    }
    return _write(folder, spec, nodes, "cells", constants)


def _write(
    folder: Path, spec: ModelSpec, nodes: list[onnx.NodeProto], name: str, constants: dict[str, NDArray[Any]]
) -> Path:
    size = spec.input_size
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", "a", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "a", 2]),
        ],
        [numpy_helper.from_array(value, constant) for constant, value in constants.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / GRAPH_FILE))
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    return folder
