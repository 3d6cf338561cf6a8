"""Several nodes together: shape arithmetic, what is folded, what is rewritten, what a file may not fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper
from onnx.helper import make_node as node

import spacetime
from spacetime.errors import CaptureError, OptionError
from spacetime.profiler.onnx import OnnxModel
from tests.profiler.onnx.oracle import (
    TOLERANCE,
    Array,
    deviation,
    floats,
    graph_bytes,
    load_bytes,
    run_oracle,
    run_ours,
    session,
)

X = floats(3, 4, 6)
ONE = np.array([1])


def int64(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def check(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Array],
    constants: dict[str, Array],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> OnnxModel:
    content = graph_bytes(nodes, inputs, constants, outputs, opset)
    model, oracle = load_bytes(content), session(content)
    for rows in (list(inputs.values()), [array[:1] for array in inputs.values()]):
        assert deviation(run_ours(model, rows), run_oracle(oracle, rows)) <= TOLERANCE
    return model


def ops(model: OnnxModel) -> list[str]:
    return [each.op for each in model.module.nodes]


def flattening(**extra: Any) -> list[NodeProto]:
    """x.view(x.size(0), -1, 3), as the older exporter writes it."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"], axis=0),
        node("Unsqueeze", ["rows", "axes"], ["rows1"]),
        node("Concat", ["rows1", "rest"], ["sizes"], axis=0),
        node("Reshape", ["x", "sizes"], ["y"], **extra),
    ]


SHAPING = {"zero": np.array(0), "axes": int64(0), "rest": int64(-1, 3)}


def test_a_reshape_chain_follows_the_rows() -> None:
    model = check(flattening(), {"x": X}, SHAPING)
    program = spacetime.capture(model.module, model.example(2))
    assert not program.kernels  # views only


def test_sizes_that_do_not_depend_on_the_rows_are_folded() -> None:
    """x * x.size(1) ** -0.5: the scale is a constant."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "one", "two"], ["size"]),
        node("Cast", ["size"], ["float"], to=1),
        node("Sqrt", ["float"], ["root"]),
        node("Div", ["x", "root"], ["y"]),
    ]
    model = check(nodes, {"x": X}, {"one": int64(1), "two": int64(2)})
    assert ops(model) == ["Div"]


def test_numbers_of_rows_are_computed_in_python() -> None:
    """[rows * 2, 12]: a reshape that splits every row in two."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"], axis=0),
        node("Mul", ["rows", "two"], ["twice"]),
        node("Div", ["twice", "two"], ["once"]),
        node("Add", ["once", "once"], ["sum"]),
        node("Sub", ["sum", "zero"], ["same"]),
        node("Max", ["same", "one"], ["most"]),
        node("Unsqueeze", ["most", "axes"], ["first"]),
        node("Concat", ["first", "rest"], ["sizes"], axis=0),
        node("Squeeze", ["sizes"], ["squeezed"]),
        node("Cast", ["squeezed"], ["cast"], to=7),
        node("Identity", ["cast"], ["target"]),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array(2),
        "axes": int64(0),
        "rest": int64(12),
    }
    check(nodes, {"x": X}, constants)


def test_expand_to_a_computed_shape() -> None:
    """A class token for every row: expand(-1) is spelled with Where and Equal."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"], axis=0),
        node("Unsqueeze", ["rows", "axes"], ["first"]),
        node("Concat", ["first", "rest"], ["sizes"], axis=0),
        node("Shape", ["sizes"], ["count"]),
        node("ConstantOfShape", ["count"], ["ones"], value=helper.make_tensor("v", 7, [1], [1])),
        node("Mul", ["ones", "minus"], ["minuses"]),
        node("Equal", ["sizes", "minuses"], ["open"]),
        node("Where", ["open", "ones", "sizes"], ["target"]),
        node("Expand", ["token", "target"], ["tokens"]),
        node("Concat", ["tokens", "x"], ["y"], axis=1),
    ]
    constants = {"zero": np.array(0), "axes": int64(0), "rest": int64(-1, 6), "minus": np.array(-1)}
    model = check(nodes, {"x": X}, {**constants, "token": floats(1, 1, 6)})
    spacetime.capture(model.module, model.example(2))


def test_ranges_and_filled_tensors() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["tokens"], axis=0),
        node("Range", ["zero", "tokens", "one"], ["positions"]),
        node("Gather", ["table", "positions"], ["embedded"], axis=0),
        node("Add", ["x", "embedded"], ["sum"]),
        node("ConstantOfShape", ["shape"], ["filled"], value=helper.make_tensor("v", 1, [1], [0.5])),
        node("Add", ["sum", "filled"], ["y"]),
    ]
    model = check(nodes, {"x": X}, {"zero": np.array(0), "one": np.array(1), "table": floats(9, 6)})
    assert "Range" not in ops(model)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd(reduction: str) -> None:
    """Indices that name every row, as x[:, 1] = updates is exported."""
    indices = np.stack([np.arange(3), np.ones(3, dtype=np.int64)], axis=1)
    nodes = [node("ScatterND", ["x", "indices", "updates"], ["y"], reduction=reduction)]
    check(nodes, {"x": X, "indices": indices, "updates": floats(3, 6, seed=1)}, {}, opset=16)


def test_swish() -> None:
    """Defined in opset 24; onnxruntime has no kernel for it yet."""
    x = torch.from_numpy(X)
    for alpha in (1.0, 0.3):
        nodes = [node("Swish", ["x"], ["y"], alpha=alpha)]
        model = load_bytes(graph_bytes(nodes, {"x": X}, {}, ["y"], opset=24))
        assert torch.allclose(model.module(x), x * torch.sigmoid(alpha * x), atol=1e-6)


def test_constants_of_every_spelling() -> None:
    nodes = [
        node("Constant", [], ["a"], value_float=2.0),
        node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        node("Constant", [], ["c"], value=helper.make_tensor("v", 1, [6], [1, 2, 3, 4, 5, 6])),
        node("Constant", [], ["axes"], value_ints=[1]),
        node("Constant", [], ["index"], value_int=2),
        node("Gather", ["x", "index"], ["picked"], axis=1),
        node("Unsqueeze", ["picked", "axes"], ["apart"]),
        node("Mul", ["x", "a"], ["m"]),
        node("Add", ["m", "b"], ["n"]),
        node("Sub", ["n", "c"], ["o"]),
        node("Add", ["o", "apart"], ["y"]),
    ]
    check(nodes, {"x": X}, {})


def test_constant_outputs_and_outputs_that_are_inputs() -> None:
    nodes = [node("Shape", ["x"], ["shape"]), node("Add", ["c", "c"], ["twice"]), node("Identity", ["x"], ["same"])]
    check(nodes, {"x": X}, {"c": floats(4)}, ["shape", "twice", "same"])


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_and_add_are_linear(order: int, rank: int) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"] if order else ["b", "p"], ["y"])]
    x = X if rank == 3 else X[:, 0]
    model = check(nodes, {"x": x}, {"w": floats(6, 5), "b": floats(5, seed=1)})
    assert ops(model) == ["Linear"]


def test_an_add_that_is_no_bias_stays() -> None:
    """The product is an output too, or the addend is no row of the right length."""
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    model = check(nodes, {"x": X}, {"w": floats(6, 5), "b": floats(5)}, ["y", "p"])
    assert ops(model) == ["Linear", "Add"]
    model = check(nodes, {"x": X}, {"w": floats(6, 5), "b": floats(1)})
    assert ops(model) == ["Linear", "Add"]
    model = check(nodes, {"x": X[:, 0]}, {"w": floats(6, 5), "b": floats(1, 1, 5)})
    assert ops(model) == ["Linear", "Add"]


def layer_norm(power: float = 2.0, epsilon: float = 1e-3) -> tuple[list[NodeProto], dict[str, Array]]:
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Pow", ["centred", "power"], ["squares"]),
        node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        node("Add", ["variance", "epsilon"], ["plus"]),
        node("Sqrt", ["plus"], ["deviation"]),
        node("Div", ["centred", "deviation"], ["normed"]),
        node("Mul", ["normed", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["y"]),
    ]
    numbers = {"power": np.array(power, dtype=np.float32), "epsilon": np.array(epsilon, dtype=np.float32)}
    return nodes, {**numbers, "scale": floats(6), "shift": floats(6, seed=1)}


def test_a_spelled_out_layer_norm_is_one_call() -> None:
    nodes, constants = layer_norm()
    assert ops(check(nodes, {"x": X}, constants)) == ["LayerNormalization"]


def test_what_only_looks_like_a_layer_norm_stays() -> None:
    nodes, constants = layer_norm(power=4.0)
    assert "LayerNormalization" not in ops(check(nodes, {"x": X}, constants))
    nodes, constants = layer_norm()
    assert "LayerNormalization" not in ops(check(nodes, {"x": X}, constants, ["y", "variance"]))


@pytest.mark.parametrize("half_last", [False, True])
@pytest.mark.parametrize("product", [False, True])
def test_a_spelled_out_gelu_is_one_call(half_last: bool, product: bool) -> None:
    root = np.array(2**-0.5 if product else 2**0.5, dtype=np.float32)
    factors = [["x", "plus"], ["half", "first"]] if half_last else [["half", "plus"], ["x", "first"]]
    nodes = [
        node("Mul" if product else "Div", ["x", "root"], ["inner"]),
        node("Erf", ["inner"], ["erf"]),
        node("Add", ["erf", "one"], ["plus"]),
        node("Mul", factors[0], ["first"]),
        node("Mul", factors[1], ["y"]),
    ]
    numbers = {"root": root, "one": np.array(1, dtype=np.float32), "half": np.array(0.5, dtype=np.float32)}
    assert ops(check(nodes, {"x": X}, numbers)) == ["Gelu"]
    assert "Gelu" not in ops(check(nodes, {"x": X}, {**numbers, "half": np.array(0.25, dtype=np.float32)}))


def test_gates_are_one_call() -> None:
    times = node("Mul", ["x", "gate"], ["y"])
    assert ops(check([node("Sigmoid", ["x"], ["gate"]), times], {"x": X}, {})) == ["Silu"]
    hard = node("HardSigmoid", ["x"], ["gate"], alpha=1 / 6, beta=0.5)
    assert ops(check([hard, times], {"x": X}, {})) == ["HardSwish"]
    other = node("HardSigmoid", ["x"], ["gate"], alpha=0.2, beta=0.5)
    assert ops(check([other, times], {"x": X}, {})) == ["HardSigmoid", "Mul"]


def test_indices_in_columns_are_taken_apart() -> None:
    """x[i, j], as both exporters write it."""
    i, j = np.array([[2], [0]]), np.array([[1, 3, 0]])
    joined = [
        node("Expand", ["i", "shape"], ["i1"]),
        node("Unsqueeze", ["i1", "last"], ["i2"]),
        node("Add", ["shift", "j"], ["j1"]),
        node("Unsqueeze", ["j1", "last"], ["j2"]),
        node("Concat", ["i2", "j2"], ["indices"], axis=-1),
        node("GatherND", ["x", "indices"], ["y"]),
    ]
    constants = {"shape": int64(1, 3), "last": int64(-1)}
    check(joined, {"i": i, "shift": np.zeros((2, 3), dtype=np.int64)}, {**constants, "j": j, "x": X})


def test_row_numbers_pick_every_rows_own_entries() -> None:
    """mask[arange(rows)[:, None], [0, 2]] by the older exporter: merged dimensions and a computed index."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"], axis=0),
        node("Range", ["zero", "rows", "one"], ["range"]),
        node("Unsqueeze", ["range", "last"], ["row"]),
        node("Flatten", ["x"], ["flat"], axis=2),
        node("Mul", ["row", "four"], ["start"]),
        node("Add", ["columns", "start"], ["index"]),
        node("Gather", ["flat", "index"], ["y"], axis=0),
    ]
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "four": np.array(4),
        "last": int64(-1),
        "columns": int64(0, 2),
    }
    model = check(nodes, {"x": X}, constants)
    assert "Index" in ops(model)
    spacetime.capture(model.module, model.example(2))


@given(st.data())
@settings(max_examples=30)
def test_shape_arithmetic_is_that_of_tensors(data: st.DataObject) -> None:
    """Random arithmetic on [rows, 4, 6], ending in a factor for x."""
    nodes, names = [node("Shape", ["x"], ["n0"])], ["n0", "a", "b"]
    for index in range(data.draw(st.integers(1, 5))):
        op = data.draw(st.sampled_from("Add Sub Mul Div Mod Max Min".split()))
        names.append(f"n{index + 1}")
        # The divisor is a constant: sizes may have become 0.
        second = "b" if op in ("Div", "Mod") else data.draw(st.sampled_from(names[:-1]))
        nodes.append(node(op, [data.draw(st.sampled_from(names[:-1])), second], [names[-1]]))
    nodes += [node("Slice", [names[-1], "one", "two"], ["size"]), node("Cast", ["size"], ["float"], to=1)]
    nodes += [node("Mul", ["x", "float"], ["y"])]
    constants = {"a": int64(-2, 5, 3), "b": int64(2, 3, -4), "one": int64(1), "two": int64(2)}
    check(nodes, {"x": X}, constants)


# -- what a file may not do ---------------------------------------------------------------------------------------


def test_a_reshape_that_fixes_the_rows_is_refused() -> None:
    content = graph_bytes([node("Reshape", ["x", "s"], ["y"])], {"x": X}, {"s": int64(3, 24)}, ["y"])
    with pytest.raises(CaptureError, match=r"Reshape .* cannot be run"):
        load_bytes(content)


def fixed(content: bytes, rows: int) -> bytes:
    import onnx

    proto = onnx.ModelProto.FromString(content)
    for each in proto.graph.input:
        each.type.tensor_type.shape.dim[0].dim_value = rows
    return proto.SerializeToString()


def test_a_file_of_a_fixed_batch_runs_with_other_rows_if_nothing_else_fixes_it() -> None:
    content = graph_bytes([node("MatMul", ["x", "w"], ["y"])], {"x": X}, {"w": floats(6, 2)}, ["y"])
    assert load_bytes(fixed(content, 1)).module(torch.zeros(5, 4, 6)).shape == (5, 4, 2)
    content = graph_bytes([node("Reshape", ["x", "s"], ["y"])], {"x": X}, {"s": int64(1, -1)}, ["y"])
    with pytest.raises(CaptureError, match="fixes the number of rows"):
        load_bytes(fixed(content, 1))


def test_a_dynamic_dimension_beside_the_rows_wants_a_size() -> None:
    import onnx

    proto = onnx.ModelProto.FromString(graph_bytes([node("Relu", ["x"], ["y"])], {"x": X}, {}, ["y"]))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    content = proto.SerializeToString()
    with pytest.raises(CaptureError, match="dynamic dimensions beside the rows") as caught:
        load_bytes(content)
    assert "'tokens'" in caught.value.facts and "sizes={'tokens': 128}" in caught.value.next_step
    assert load_bytes(content, {"tokens": 9}).example(3)[0].shape == (3, 9, 6)
    with pytest.raises(OptionError, match="no dynamic dimension 'token'"):
        load_bytes(content, {"token": 9})
    with pytest.raises(OptionError, match="at least 1"):
        load_bytes(content, {"tokens": 0})


def test_an_example_has_at_least_one_row() -> None:
    model = load_bytes(graph_bytes([node("Relu", ["x"], ["y"])], {"x": X}, {}, ["y"]))
    with pytest.raises(OptionError, match="0 rows"):
        model.example(0)


def test_a_constant_that_grows_beyond_measure_is_not_computed() -> None:
    """An expand of one number to a terabyte stays a view of it, at loading and at running."""
    nodes = [
        node("Expand", ["c", "huge"], ["big"]),
        node("ReduceMax", ["big"], ["most"]),
        node("Add", ["x", "most"], ["y"]),
    ]
    content = graph_bytes(nodes, {"x": X}, {"c": floats(1), "huge": int64(2**38)}, ["y"])
    model = load_bytes(content)
    assert "Expand" in ops(model)


def test_outputs_that_nobody_reads_are_not_computed() -> None:
    """Their masks, indices and deviations are not implemented, and would be kernels of their own."""
    nodes = [
        node("LayerNormalization", ["x", "scale"], ["normed", "mean", "deviation"], axis=-1),
        node("Dropout", ["normed"], ["kept", "mask"]),
        node("MaxPool", ["kept"], ["y", "indices"], kernel_shape=[2]),
    ]
    model = check(nodes, {"x": X}, {"scale": floats(6)})
    program = spacetime.capture(model.module, model.example(2))
    assert [kernel.op for kernel in program.kernels] == ["layer_norm", "max_pool1d"]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "align_corners"}),
        ("Resize", {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}),
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ],
)
def test_what_torch_does_not_have_can_be_captured(op: str, attributes: dict[str, Any]) -> None:
    scales = np.array([1, 1, 2, 3], dtype=np.float32)
    inputs = ["x", "", "scales"] if op == "Resize" else ["x"]
    model = check([node(op, inputs, ["y"], **attributes)], {"x": floats(3, 2, 5, 4)}, {"scales": scales}, opset=19)
    assert spacetime.capture(model.module, model.example(2)).kernels
