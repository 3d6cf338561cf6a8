"""Attention as files before opset 23 spell it: imported as one call where it is exactly that, else left as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import torch
from onnx import NodeProto
from onnx.helper import make_node as node

import spacetime
from spacetime.profiler.onnx import OnnxModel, load_onnx
from tests.profiler.onnx.conftest import Export
from tests.profiler.onnx.models import MODELS
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

ROWS, HEADS, TOKENS, KEYS, SIZE = 3, 2, 5, 7, 4
INPUTS = {
    "q": floats(ROWS, HEADS, TOKENS, SIZE),
    "k": floats(ROWS, HEADS, KEYS, SIZE, seed=1),
    "v": floats(ROWS, HEADS, KEYS, SIZE, seed=2),
}
LOWEST = np.finfo(np.float32).min
CONSTANTS: dict[str, Array] = {
    "half": np.array(SIZE**-0.25, dtype=np.float32),
    "scale": np.array([SIZE**-0.5], dtype=np.float32),
    "root": np.array(SIZE**0.5, dtype=np.float32),
    "zero": np.array([0], dtype=np.float32),
    "one": np.array([1], dtype=np.float32),
    "lowest": np.array(LOWEST, dtype=np.float32),
    "infinite": np.array([-np.inf], dtype=np.float32),
    "positions": floats(1, HEADS, TOKENS, KEYS, seed=3),
    "causal": np.triu(np.full((TOKENS, KEYS), -np.inf, dtype=np.float32), k=1),
    "blank": np.full((TOKENS, KEYS), -np.inf, dtype=np.float32),
    "columns": floats(1, HEADS, TOKENS, 1, seed=5),
}
SHOWN = np.array([[[[1, 1, 1, 1, 1, 0, 0]]], [[[1, 1, 0, 0, 0, 0, 0]]], [[[0] * KEYS]]], dtype=bool)

TRANSPOSE = [node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2])]
SOFTMAX = [node("Softmax", ["s"], ["p"], axis=-1)]
LAST = [node("MatMul", ["p", "v"], ["y"])]
GUARD = [node("IsNaN", ["p0"], ["bad"]), node("Where", ["bad", "zero", "p0"], ["p"])]
GUARDED = [node("Softmax", ["s"], ["p0"], axis=-1), *GUARD]
SCORES = [node("MatMul", ["q", "kt"], ["m"]), node("Mul", ["m", "scale"], ["s0"])]
HIDDEN = [node("Where", ["shown", "zero", "lowest"], ["mask"])]
BLANK = [node("Where", ["shown", "zero", "infinite"], ["mask"])]
MASKED = [node("Add", ["s0", "mask"], ["s"])]

Nodes = Sequence[NodeProto]

ATTENTION: dict[str, Nodes] = {
    "no scale": [*TRANSPOSE, node("MatMul", ["q", "kt"], ["s"]), *SOFTMAX, *LAST],
    "half of it each": [
        *TRANSPOSE,
        node("Mul", ["q", "half"], ["q1"]),
        node("Mul", ["half", "kt"], ["k1"]),
        node("MatMul", ["q1", "k1"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "the query divided": [
        *TRANSPOSE,
        node("Div", ["q", "root"], ["q1"]),
        node("MatMul", ["q1", "kt"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "the scores divided": [
        *TRANSPOSE,
        node("MatMul", ["q", "kt"], ["m"]),
        node("Div", ["m", "root"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=3),
        *LAST,
    ],
    "everywhere": [
        *TRANSPOSE,
        node("Mul", ["q", "half"], ["q1"]),
        node("Div", ["kt", "root"], ["k1"]),
        node("MatMul", ["q1", "k1"], ["m"]),
        node("Mul", ["m", "scale"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "keys by reshapes": [
        node("Reshape", ["k", "flat"], ["k1"]),
        node("Transpose", ["k1"], ["k2"], perm=[0, 2, 1]),
        node("Reshape", ["k2", "apart"], ["kt"]),
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        *LAST,
    ],
    "a mask": [*TRANSPOSE, *SCORES, *HIDDEN, *MASKED, *SOFTMAX, *LAST],
    "a mask on the left": [*TRANSPOSE, *SCORES, *HIDDEN, node("Add", ["mask", "s0"], ["s"]), *SOFTMAX, *LAST],
    "positions": [*TRANSPOSE, *SCORES, node("Add", ["s0", "positions"], ["s"]), *SOFTMAX, *LAST],
    "a mask by arithmetic": [
        *TRANSPOSE,
        *SCORES,
        node("Cast", ["shown"], ["as float"], to=1),
        node("Sub", ["one", "as float"], ["hidden"]),
        node("Mul", ["hidden", "lowest"], ["mask"]),
        *MASKED,
        *SOFTMAX,
        *LAST,
    ],
    "a constant mask that shows some keys": [
        *TRANSPOSE,
        *SCORES,
        node("Add", ["s0", "causal"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "rows without any key": [*TRANSPOSE, *SCORES, *BLANK, *MASKED, *GUARDED, *LAST],
    "a cast to what it is": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p0"], axis=-1),
        node("Cast", ["p0"], ["p"], to=1),
        *LAST,
    ],
    "a query with another reader": [
        *TRANSPOSE,
        node("Mul", ["q", "half"], ["q1"]),
        node("MatMul", ["q1", "kt"], ["s"]),
        *SOFTMAX,
        node("MatMul", ["p", "v"], ["mixed"]),
        node("Add", ["mixed", "q1"], ["y"]),
    ],
}

OTHER: dict[str, Nodes] = {
    "a softmax over the queries": [*TRANSPOSE, *SCORES, node("Softmax", ["s0"], ["p"], axis=-2), *LAST],
    "a second reader of the weights": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("ReduceMax", ["p"], ["most"], axes=[3], keepdims=1),
        node("Add", ["mixed", "most"], ["y"]),
    ],
    "a second reader of the scores": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("ReduceMax", ["s0"], ["most"], axes=[3], keepdims=1),
        node("Add", ["mixed", "most"], ["y"]),
    ],
    "a second reader of the product": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("ReduceMax", ["m"], ["most"], axes=[3], keepdims=1),
        node("Add", ["mixed", "most"], ["y"]),
    ],
    "a second reader of the guarded weights": [
        *TRANSPOSE,
        *SCORES,
        *BLANK,
        *MASKED,
        *GUARDED,
        node("MatMul", ["p", "v"], ["mixed"]),
        node("ReduceMax", ["p"], ["most"], axes=[3], keepdims=1),
        node("Add", ["mixed", "most"], ["y"]),
    ],
    "a mask behind the softmax": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p0"], axis=-1),
        node("Add", ["p0", "positions"], ["p"]),
        *LAST,
    ],
    "scores taken from the mask": [
        *TRANSPOSE,
        *SCORES,
        node("Sub", ["positions", "s0"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "a mask before the scale": [
        *TRANSPOSE,
        node("MatMul", ["q", "kt"], ["m"]),
        node("Add", ["m", "positions"], ["a"]),
        node("Mul", ["a", "scale"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "a mask that multiplies": [*TRANSPOSE, *SCORES, node("Mul", ["s0", "positions"], ["s"]), *SOFTMAX, *LAST],
    "rows without any key, and NaN": [*TRANSPOSE, *SCORES, *BLANK, *MASKED, *SOFTMAX, *LAST],
    "a constant mask that shows none": [*TRANSPOSE, *SCORES, node("Add", ["s0", "blank"], ["s"]), *SOFTMAX, *LAST],
    "NaN to something else": [
        *TRANSPOSE,
        *SCORES,
        *BLANK,
        *MASKED,
        node("Softmax", ["s"], ["p0"], axis=-1),
        node("IsNaN", ["p0"], ["bad"]),
        node("Where", ["bad", "one", "p0"], ["p"]),
        *LAST,
    ],
    "the NaN kept": [
        *TRANSPOSE,
        *SCORES,
        *BLANK,
        *MASKED,
        node("Softmax", ["s"], ["p0"], axis=-1),
        node("IsNaN", ["p0"], ["bad"]),
        node("Where", ["bad", "p0", "zero"], ["p"]),
        *LAST,
    ],
    "weights on the right": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        node("Transpose", ["v"], ["vt"], perm=[0, 1, 3, 2]),
        node("Transpose", ["p"], ["pt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["vt", "pt"], ["y"]),
    ],
    "a scale for every query": [
        *TRANSPOSE,
        *SCORES,
        node("Mul", ["s0", "columns"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "a scale below zero": [
        *TRANSPOSE,
        node("Neg", ["half"], ["below"]),
        node("Mul", ["q", "below"], ["q1"]),
        node("MatMul", ["q1", "kt"], ["s"]),
        *SOFTMAX,
        *LAST,
    ],
    "values for all rows": [
        *TRANSPOSE,
        *SCORES,
        node("Softmax", ["s0"], ["p"], axis=-1),
        node("MatMul", ["p", "w"], ["y"]),
    ],
}


def checked(nodes: Nodes) -> OnnxModel:
    """The model, after it gave what onnxruntime gives."""
    names = {name for each in nodes for name in each.input}
    inputs = {name: array for name, array in {**INPUTS, "shown": SHOWN}.items() if name in names}
    constants = {
        **CONSTANTS,
        "flat": np.array([-1, KEYS, SIZE]),
        "apart": np.array([-1, HEADS, SIZE, KEYS]),
        "w": floats(1, HEADS, KEYS, SIZE, seed=6),
    }
    content = graph_bytes(nodes, inputs, {name: constants[name] for name in constants if name in names}, ["y"])
    model, oracle = load_bytes(content), session(content)
    for rows in (list(inputs.values()), [array[:1] for array in inputs.values()]):
        assert deviation(run_ours(model, rows), run_oracle(oracle, rows)) <= TOLERANCE
    return model


def ops(model: OnnxModel) -> Counter[str]:
    return Counter(each.op for each in model.module.nodes)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention_is_recognised(name: str) -> None:
    model = checked(ATTENTION[name])
    assert ops(model)["ScaledDotProduct"] == 1
    assert not {"Softmax", "MatMul", "IsNaN", "Div"} & set(ops(model))
    program = spacetime.capture(model.module, model.example(2))
    assert [kernel.op for kernel in program.kernels].count("scaled_dot_product_attention") == 1


@pytest.mark.parametrize("name", list(OTHER))
def test_what_is_nearly_attention_is_left_alone(name: str) -> None:
    found = ops(checked(OTHER[name]))
    assert found["ScaledDotProduct"] == 0 and found["Softmax"] == 1


def test_a_mask_that_comes_from_outside_may_hide_everything() -> None:
    """Nothing says that it is finite, and torch has zeros where a softmax has NaN."""
    nodes = [*TRANSPOSE, *SCORES, *MASKED, *SOFTMAX, *LAST]
    mask = np.where(SHOWN, 0, -np.inf).astype(np.float32)
    content = graph_bytes(nodes, {**INPUTS, "mask": mask}, {"scale": CONSTANTS["scale"]}, ["y"])
    model, arrays = load_bytes(content), [*INPUTS.values(), mask]
    assert ops(model)["ScaledDotProduct"] == 0
    theirs = run_oracle(session(content), arrays)
    assert np.isnan(theirs[0]).any() and deviation(run_ours(model, arrays), theirs) <= TOLERANCE


def test_a_mask_larger_than_the_scores_is_left_alone() -> None:
    nodes = [
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s0"]),
        node("Add", ["s0", "positions"], ["s"]),
        *SOFTMAX,
        node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = {name: array[:, 0] for name, array in INPUTS.items()}
    content = graph_bytes(nodes, inputs, {"positions": floats(2, 1, TOKENS, KEYS)}, ["y"])
    model = load_bytes(content)
    assert ops(model)["ScaledDotProduct"] == 0
    arrays = list(inputs.values())
    assert deviation(run_ours(model, arrays), run_oracle(session(content), arrays)) <= TOLERANCE


# -- exports -----------------------------------------------------------------------------------------------

EXPORTS = [("script", "vit", 14), ("script", "zoo_bert", 14), ("dynamo", "bert", 20)]
EXPORTS += [("script", name, 17) for name in ("bert", "gpt2", "distilbert", "albert")]
LIKE_BERT = [("script", name, 17) for name in ("distilbert", "albert")]  # their attention is spelled as BERT's


def attention_calls(name: str) -> int:
    """How often the module calls torch's attention."""
    calls = 0
    plain: Callable[..., torch.Tensor] = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        with torch.no_grad():
            MODELS[name].build()(*MODELS[name].inputs(2))
    return calls


@pytest.mark.parametrize(
    ("exporter", "name", "opset"),
    [pytest.param(*each, marks=pytest.mark.slow) if each in LIKE_BERT else each for each in EXPORTS],
)
def test_an_export_has_the_attention_of_its_module(export: Export, exporter: str, name: str, opset: int) -> None:
    if name not in ("vit", "zoo_bert"):
        pytest.importorskip("transformers")
    path = export(name, exporter, opset)
    model, oracle = load_onnx(path), session(str(path))
    program = spacetime.capture(model.module, model.example(2))
    found = Counter(kernel.op for kernel in program.kernels)
    assert found["scaled_dot_product_attention"] == attention_calls(name) > 0
    assert not {"softmax", "_softmax", "isnan", "bmm", "matmul"} & set(found)
    for inputs in (MODELS[name].inputs(1), MODELS[name].inputs(3)):
        arrays = [tensor.numpy() for tensor in inputs]
        assert deviation(run_ours(model, arrays), run_oracle(oracle, arrays)) <= TOLERANCE
