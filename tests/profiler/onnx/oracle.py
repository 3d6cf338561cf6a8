"""Single nodes as files, and what onnxruntime says about them. Used by the tests of the importer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from spacetime.profiler.onnx import OnnxModel, load_onnx

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Const:
    """An input of a node that is part of the file."""

    array: Array


def ints(*values: int) -> Const:
    return Const(np.array(values, dtype=np.int64))


def scalar(value: float) -> Const:
    return Const(np.array(value, dtype=np.float32))


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph_bytes(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Array],
    constants: dict[str, Array],
    outputs: Sequence[str],
    opset: int = 17,
) -> bytes:
    """A file whose inputs have dynamic rows; outputs have no declared shapes."""
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), ["rows", *array.shape[1:]])
        for name, array in inputs.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "test", declared, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def session(content: bytes | str) -> onnxruntime.InferenceSession:
    """Without its optimisations: its fusion of layer norms, for one, takes every exponent for 2."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_oracle(oracle: onnxruntime.InferenceSession, inputs: Sequence[Array]) -> list[Array]:
    names = [each.name for each in oracle.get_inputs()]
    results: list[Array] = oracle.run(None, dict(zip(names, inputs, strict=True)))
    return results


def run_ours(model: OnnxModel, inputs: Sequence[Array]) -> list[Array]:
    with torch.no_grad():
        result = model.module(*(torch.from_numpy(np.array(array)) for array in inputs))
    return [leaf.numpy() for leaf in ((result,) if isinstance(result, Tensor) else result)]


def deviation(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest deviation relative to the largest value of its output; infinite for other shapes or types."""
    worst = 0.0
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        if not np.array_equal(np.isnan(one), np.isnan(other)):
            return float("inf")
        finite = np.isfinite(other)
        if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
            return float("inf")
        if finite.any():
            distance = np.abs(one[finite].astype(np.float64) - other[finite].astype(np.float64)).max()
            worst = max(worst, float(distance / max(np.abs(other[finite].astype(np.float64)).max(), 1e-6)))
    return worst


def load_bytes(content: bytes, sizes: dict[str, int] | None = None) -> OnnxModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return load_onnx(path, sizes)


def node_bytes(op: str, *inputs: Array | Const | None, opset: int = 17, outputs: int = 1, **attributes: Any) -> bytes:
    """One node; arrays are inputs of the file, `Const`s its constants, None is left out."""
    names = ["" if each is None else f"in{index}" for index, each in enumerate(inputs)]
    results = [f"out{index}" for index in range(outputs)]
    given = dict(zip(names, inputs, strict=True))
    constants = {name: each.array for name, each in given.items() if isinstance(each, Const)}
    arrays = {name: each for name, each in given.items() if isinstance(each, np.ndarray)}
    node = helper.make_node(op, names, results, name="tested", **attributes)
    return graph_bytes([node], arrays, constants, results, opset)


def check(op: str, *inputs: Array | Const | None, opset: int = 17, outputs: int = 1, **attributes: Any) -> None:
    """The node gives what onnxruntime gives, for all rows and for the first alone."""
    content = node_bytes(op, *inputs, opset=opset, outputs=outputs, **attributes)
    arrays = [each for each in inputs if isinstance(each, np.ndarray)]
    oracle, model = session(content), load_bytes(content)
    for rows in (arrays, [array[:1] for array in arrays]):
        assert deviation(run_ours(model, rows), run_oracle(oracle, rows)) <= TOLERANCE
