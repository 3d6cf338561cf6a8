"""Every operation against onnxruntime, in the corners of its attributes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.errors import CaptureError
from spacetime.profiler.onnx.registry import known_operations
from tests.profiler.onnx.oracle import Const, check, floats, ints, load_bytes, node_bytes, scalar

X = floats(3, 4, 6)
IMAGE = floats(3, 4, 9, 7)
Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def case(op: str, *inputs: Any, **options: Any) -> Case:
    return op, inputs, options


def name_of(value: Any) -> str:
    return f"{value[0]}-{'-'.join(map(str, value[2].values()))}"[:60] if isinstance(value, tuple) else ""


IN_ONE = np.clip(X, -0.9, 0.9)
POSITIVE = np.abs(X) + 0.1
BOOLEANS = X > 0
WHOLE = (10 * X).astype(np.int64)

ELEMENTWISE = [
    *(
        case(op, X)
        for op in "Abs Neg Exp Floor Ceil Round Sign Erf Sin Cos Tan Atan Sinh Cosh Asinh IsNaN Relu".split()
    ),
    *(
        case(op, X)
        for op in "Sigmoid Tanh HardSwish Softplus Softsign Elu Selu Celu LeakyRelu Identity Dropout".split()
    ),
    *(case(op, POSITIVE) for op in "Sqrt Log Reciprocal".split()),
    *(case(op, IN_ONE) for op in "Asin Acos Atanh".split()),
    case("Acosh", POSITIVE + 1),
    case("Mish", X, opset=18),
    case("Gelu", X, opset=20),
    case("Gelu", X, opset=20, approximate="tanh"),
    case("Elu", X, alpha=0.3),
    case("LeakyRelu", X, alpha=0.3),
    case("HardSigmoid", X),
    case("HardSigmoid", X, alpha=1 / 6, beta=0.5),
    case("ThresholdedRelu", X, alpha=0.4),
    case("Shrink", X, lambd=0.3, bias=0.1),
    case("IsInf", np.array([[1, np.inf, -np.inf]] * 2, dtype=np.float32)),
    case("IsInf", np.array([[1, np.inf, -np.inf]] * 2, dtype=np.float32), detect_negative=0),
    case("Not", BOOLEANS),
    *(case(op, X, Const(floats(4, 1))) for op in "Add Sub Mul Div Max Min Equal Greater Less GreaterOrEqual".split()),
    *(case(op, Const(floats(6)), X) for op in "Add Sub Mul Div LessOrEqual".split()),
    *(case(op, X, scalar(0.5)) for op in "Add Sub Mul Div Max Min Greater".split()),
    *(case(op, scalar(0.5), X) for op in "Sub Div Less".split()),
    *(case(op, X, X[:, :1]) for op in "Add Mul".split()),
    *(case(op, BOOLEANS, Const(floats(6) > 0)) for op in "And Or Xor".split()),
    case("Sum", X, X[:, :1], Const(floats(6))),
    case("Mean", X, X[:, :1], Const(floats(6))),
    case("Max", X, X[:, :1], Const(floats(6))),
    case("Div", WHOLE, Const(np.array(3))),
    case("Div", WHOLE, Const(np.array([3, -4, 5, 7, -2, 1]))),
    case("Mod", WHOLE, Const(np.array([3, -4, 5, 7, -2, 1]))),
    case("Mod", X, Const(floats(6)), fmod=1),
    case("Pow", POSITIVE, scalar(2.0)),
    case("Pow", POSITIVE, Const(floats(6))),
    case("Pow", WHOLE, Const(np.array(2.0, dtype=np.float32))),
    case("Where", BOOLEANS, X, scalar(-1.0)),
    case("Where", BOOLEANS, scalar(1.0), scalar(-1.0)),
    *(
        case("Where", BOOLEANS, Const(np.array(1, dtype=dtype)), Const(np.array(0, dtype=dtype)))
        for dtype in (np.float16, np.float64, np.int32)
    ),
    case("Where", BOOLEANS, X.astype(np.float16), Const(np.array(2, dtype=np.float16))),
    case("Where", BOOLEANS, Const(floats(6)), X),
    case("Clip", X),
    case("Clip", X, scalar(0.0), scalar(6.0)),
    case("Clip", X, scalar(-0.5), scalar(0.5)),
    case("Clip", X, scalar(0.5), scalar(-0.5)),
    case("Clip", X, None, scalar(0.5)),
    case("Clip", X, scalar(0.1)),
    case("PRelu", IMAGE, Const(floats(4, 1, 1))),
    case("PRelu", IMAGE, Const(floats(1))),
    case("PRelu", X, Const(floats(6))),
    *(case(op, X, axis=axis) for op in ("Softmax", "LogSoftmax") for axis in (1, -1)),
    case("Cast", X, to=7),
    case("Cast", X, to=9),
    case("Cast", WHOLE, to=11),
    case("CastLike", X, Const(np.array([1, 2]))),
    case("BitwiseAnd", WHOLE, Const(np.array(6)), opset=18),
    case("BitwiseOr", WHOLE, Const(np.array(6)), opset=18),
    case("BitwiseXor", WHOLE, Const(np.array(6)), opset=18),
    case("BitwiseNot", WHOLE, opset=18),
]

REDUCTIONS = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp".split()
INTEGER_REDUCTIONS = "ReduceSum ReduceMean ReduceMax ReduceProd ReduceL1 ReduceL2 ReduceSumSquare".split()
SHAPES = [
    *(case(op, X, axes=[-1, 1], keepdims=keep) for op in REDUCTIONS for keep in (0, 1)),
    *(case(op, X, ints(2), opset=18) for op in REDUCTIONS),
    case("ReduceLogSum", POSITIVE, axes=[2]),
    case("ReduceSum", X, ints(-1), keepdims=0),
    case("ReduceSum", X, ints(1, 2)),
    case("ReduceSum", X, None, noop_with_empty_axes=1),
    case("ReduceSum", WHOLE, ints(-1)),
    case("ArgMax", X, axis=-1, keepdims=0),
    case("ArgMax", np.round(X), axis=2, select_last_index=1),
    case("ArgMin", np.round(X), axis=1),
    case("CumSum", X, Const(np.array(1))),
    case("CumSum", X, Const(np.array(-1)), exclusive=1, reverse=1),
    case("CumProd", X, Const(np.array(1)), exclusive=1, reverse=1, opset=26),
    *(case(op, WHOLE[:, :, :1].astype(np.int32), ints(1), opset=18) for op in INTEGER_REDUCTIONS),
    case("TopK", X, ints(2), outputs=2, axis=1),
    case("TopK", X, ints(3), outputs=2, largest=0),
    case("Reshape", X, ints(0, -1)),
    case("Reshape", X, ints(-1, 2, 12)),
    case("Reshape", X, ints(0, 0, 2, 3)),
    case("Flatten", X),
    case("Flatten", IMAGE, axis=2),
    case("Flatten", IMAGE, axis=-1),
    case("Flatten", IMAGE, axis=0),
    case("Transpose", IMAGE),
    case("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    case("Squeeze", X[:, :1], ints(1)),
    case("Squeeze", X[:, :1], ints(-2)),
    case("Unsqueeze", X, ints(-1, 1)),
    case("Unsqueeze", X, ints(0)),
    case("Concat", X, X[:, :2], axis=1),
    case("Concat", X, X, axis=-1),
    case("Split", X, outputs=3, axis=-1),
    case("Split", X, ints(1, 3), outputs=2, axis=1),
    case("Split", IMAGE, outputs=4, axis=-1, opset=18, num_outputs=4),
    case("Expand", X[:, :1], ints(1, 4, 1)),
    case("Expand", X[:, :1], ints(2, 1, 4, 6)),
    case("Tile", X, ints(1, 2, 3)),
    case("Trilu", X, opset=17),
    case("Trilu", X, Const(np.array(1)), upper=0),
    case("Trilu", X, Const(np.array(-1))),
    case("EyeLike", X[:, 0], k=1),
    case("EyeLike", X[:, 0], dtype=7),
    case("Shape", X),
    case("Shape", X, start=1, end=-1),
    case("Size", X),
    *(case("Pad", X, ints(0, 1, 2, 0, 0, 3), *value) for value in ((), (scalar(1.5),))),
    case("Pad", X, ints(0, 0, -1, 0, 0, -2)),
    case("Pad", X, ints(1, 2), scalar(3.0), ints(-1), opset=18),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1), mode="edge"),
    case("Pad", IMAGE, ints(0, 0, 0, 2, 0, 0, 0, 1), mode="reflect"),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1), mode="wrap", opset=19),
    *(case("Pad", X, ints(0, 2, 3, 0, 1, 0), mode=mode, opset=19) for mode in ("reflect", "edge", "wrap")),
    *(case("Pad", X, ints(0, -1, 2, 0, 2, -1), mode=mode, opset=19) for mode in ("reflect", "edge", "wrap")),
    case("Pad", X[:, 0], ints(0, 2, 0, 1), mode="edge", opset=19),
    *(case("DepthToSpace", IMAGE[:, :, :4, :5], blocksize=2, mode=mode) for mode in ("DCR", "CRD")),
    case("SpaceToDepth", IMAGE[:, :, :4, :6], blocksize=2),
]

TABLE = Const(floats(10, 5))
IDS = np.array([[1, 9, 3], [0, 0, 4]])
INDICES = np.random.default_rng(1).integers(-4, 4, (3, 2, 6))
INDEXING = [
    case("Gather", TABLE, IDS),
    case("Gather", Const(floats(10)), IDS),
    case("Gather", Const(floats(4, 10, 2)), IDS, axis=1),
    case("Gather", X, ints(0, 2, -1), axis=1),
    case("Gather", X, ints(1, 2), axis=-1),
    case("Gather", X, Const(np.array(-1)), axis=1),
    case("Gather", X, Const(np.array([[0, 1], [2, -1]])), axis=2),
    case("GatherElements", X, INDICES, axis=1),
    case("GatherElements", X, Const(np.zeros((1, 4, 2), dtype=np.int64)), axis=2),
    case("GatherND", Const(floats(3, 5, 2)), np.array([[[0, 1], [2, -1]], [[1, 1], [0, 0]]])),
    case("GatherND", X, np.array([[[0], [3]], [[1], [-1]], [[2], [2]]]), batch_dims=1),
    case("GatherND", X, np.array([[[0, 1], [3, -1]], [[1, 0], [-1, 2]], [[2, 2], [0, 0]]]), batch_dims=1),
    *(
        case("ScatterND", TABLE, np.array([[[1], [3]], [[0], [-1]]]), floats(2, 2, 5), reduction=reduction, opset=18)
        for reduction in ("mul", "max", "min")
    ),
    case("ScatterElements", X, INDICES, floats(3, 2, 6), axis=1),
    case("ScatterElements", X, np.zeros((3, 1, 6), dtype=np.int64), floats(3, 1, 6), axis=1, reduction="add", opset=16),
    case("ScatterElements", X, np.zeros((3, 1, 6), dtype=np.int64), floats(3, 1, 6), axis=1, reduction="max", opset=18),
    case("OneHot", IDS, Const(np.array(5)), Const(np.array([0.5, 2.0], dtype=np.float32))),
    case("OneHot", IDS - 3, Const(np.array(5)), Const(np.array([0, 1])), axis=1),
    case("Slice", X, ints(1), ints(3), ints(1)),
    case("Slice", X, ints(-3), ints(2**63 - 1), ints(-1), ints(2)),
    case("Slice", X, ints(-1), ints(-(2**63)), ints(1), ints(-1)),
]

CONVOLUTIONS = [
    case("Conv", IMAGE, Const(floats(5, 4, 3, 3)), Const(floats(5))),
    case("Conv", IMAGE, Const(floats(5, 4, 3, 2)), pads=[1, 0, 2, 1], strides=[2, 1]),
    case("Conv", IMAGE, Const(floats(4, 1, 3, 3)), group=4, dilations=[2, 1], pads=[1, 1, 1, 1]),
    *(
        case("Conv", IMAGE, Const(floats(5, 4, 4, 3)), auto_pad=mode, strides=[2, 3])
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("Conv", X, Const(floats(5, 4, 3)), pads=[0, 2]),
    case("Conv", floats(2, 3, 5, 6, 4), Const(floats(4, 3, 2, 3, 2)), pads=[1, 0, 1, 1, 0, 1]),
    case("ConvTranspose", IMAGE, Const(floats(4, 3, 3, 3)), Const(floats(3)), strides=[2, 2]),
    case("ConvTranspose", IMAGE, Const(floats(4, 3, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, Const(floats(4, 2, 3, 3)), group=2, pads=[1, 0, 0, 2], strides=[2, 1]),
    case("ConvTranspose", IMAGE, Const(floats(4, 3, 3, 3)), strides=[2, 2], output_shape=[18, 14]),
    case("ConvTranspose", IMAGE, Const(floats(4, 3, 3, 3)), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("GlobalAveragePool", IMAGE),
    case("GlobalAveragePool", X),
    case("GlobalMaxPool", IMAGE),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 0]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", X, kernel_shape=[2], strides=[2]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("LRN", IMAGE, size=3, alpha=0.1),
    *(
        case("Resize", IMAGE, None, Const(np.array([1, 1, 2, 3], dtype=np.float32)), **modes)
        for modes in (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"},
        )
    ),
    case("Resize", IMAGE, None, Const(np.array([1, 1, 0.5, 2], dtype=np.float32)), mode="linear"),
    *(
        case("Resize", IMAGE, None, Const(np.array([1, 1, *factors], dtype=np.float32)), opset=19, **modes)
        for factors in ((2, 3), (0.5, 0.75), (1.3, 0.6))
        for modes in (
            {"mode": "nearest"},  # half_pixel, round_prefer_floor
            {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "round_prefer_ceil"},
            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
            {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"},
            {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
        )
    ),
    case("Resize", IMAGE, None, None, ints(4, 3), opset=18, axes=[2, 3], mode="linear", antialias=1, exclude_outside=1),
    case("Resize", X, None, Const(np.array([1, 2, 2], dtype=np.float32)), mode="linear"),
    case("Resize", (9 * IMAGE).astype(np.int32), None, Const(np.array([1, 1, 2, 2], dtype=np.float32))),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2], opset=19, pads=[1, 1, 0, 1]),
    case(
        "AveragePool",
        IMAGE,
        kernel_shape=[3, 2],
        dilations=[2, 1],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=1,
        ceil_mode=1,
        opset=19,
    ),
    case("GridSample", IMAGE, 0.6 * floats(3, 4, 5, 2), opset=20, mode="cubic", padding_mode="reflection"),
    case("GridSample", IMAGE, 0.6 * floats(3, 4, 5, 2), opset=16, mode="bilinear", align_corners=1),
    case("Col2Im", floats(3, 8, 9), ints(4, 4), ints(2, 2), opset=18, strides=[2, 2], pads=[1, 1, 1, 1]),
]

NORMS = [
    case("BatchNormalization", IMAGE, *(Const(np.abs(floats(4, seed=seed))) for seed in range(4)), epsilon=1e-3),
    case("InstanceNormalization", IMAGE, Const(floats(4)), Const(floats(4, seed=1))),
    case("GroupNormalization", IMAGE, Const(floats(2)), Const(floats(2, seed=1)), num_groups=2, opset=18),
    case("GroupNormalization", IMAGE, Const(floats(4)), Const(floats(4, seed=1)), num_groups=2, opset=21),
    case("LayerNormalization", X, Const(floats(6)), Const(floats(6, seed=1)), epsilon=1e-3),
    case("LayerNormalization", X, Const(floats(4, 6)), axis=1),
    case("RMSNormalization", X, Const(floats(6)), opset=23),
    case("LpNormalization", X, axis=1, p=2),
    case("LpNormalization", X, p=1),
    case("MeanVarianceNormalization", IMAGE, axes=[2, 3]),
]

HEADS = [floats(2, 4, 4, 6, seed=seed) for seed in range(3)]
ANGLES = [Const(floats(10, 3, seed=seed)) for seed in range(2)]
PLACES = np.array([[0, 1, 2, 3], [4, 5, 6, 9]])
PRODUCTS = [
    case("MatMul", X, Const(floats(6, 5))),
    case("MatMul", X, Const(floats(6))),
    case("MatMul", Const(floats(2, 4)), X),
    case("MatMul", X, np.ascontiguousarray(X.transpose(0, 2, 1))),
    case("MatMul", floats(3, 2, 4, 5), Const(floats(2, 5, 3))),
    *(
        case("Gemm", X[:, 0], Const(floats(5, 6) if transposed else floats(6, 5)), *offset, transB=transposed, **scales)
        for transposed in (0, 1)
        for offset in ((), (Const(floats(5)),), (Const(floats(1, 5)),), (scalar(2.0),))
        for scales in ({}, {"alpha": 0.5, "beta": 2.0})
    ),
    case("Gemm", X[:, 0], Const(floats(5, 6)), X[:, 0, :5], transB=1),
    case("Einsum", X, Const(floats(6, 5)), equation="bij,jk->bik"),
    case("Einsum", X, X, equation="bij,bkj->bik"),
    case("Attention", floats(2, 3, 4, 5), floats(2, 3, 6, 5), floats(2, 3, 6, 5), opset=23),
    case("Attention", *(floats(2, 3, 4, 5, seed=seed) for seed in range(3)), opset=23, is_causal=1),
    case("Attention", *(floats(2, 4, 6, seed=seed) for seed in range(3)), opset=23, q_num_heads=2, kv_num_heads=2),
    case("Attention", floats(2, 4, 4, 5), floats(2, 2, 4, 5), floats(2, 2, 4, 5), opset=23, scale=0.3),
    case("Attention", *(floats(2, 3, 4, 5, seed=seed) for seed in range(3)), Const(floats(4, 4)), opset=23),
    case("Attention", *HEADS, None, *HEADS[1:], opset=23, outputs=3, is_causal=1),
    case("Attention", HEADS[0], HEADS[1][:, :2], HEADS[2][:, :2], opset=23, softcap=1.0, is_causal=1),
    *(
        case("Attention", *HEADS, Const(floats(4, 4)), opset=24, outputs=4, qk_matmul_output_mode=mode, softcap=2.0)
        for mode in range(4)
    ),
    *(case("RotaryEmbedding", HEADS[0], *ANGLES, PLACES, opset=23, interleaved=interleaved) for interleaved in (0, 1)),
    case("RotaryEmbedding", floats(2, 4, 32), *ANGLES, PLACES, opset=23, num_heads=4, rotary_embedding_dim=6),
]

ALL = [*ELEMENTWISE, *SHAPES, *INDEXING, *CONVOLUTIONS, *NORMS, *PRODUCTS]


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_a_node_is_onnxruntimes(case: Case) -> None:
    op, inputs, options = case
    check(op, *inputs, **options)


STEPS = floats(5, 3, 4)  # steps, rows, features


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", ["plain", "bias", "states", "no outputs but the last"])
def test_a_recurrence_is_onnxruntimes(op: str, direction: str, options: str) -> None:
    check_recurrence(op, direction, options)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"activations": ["Relu", "Tanh"]}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
        ("RNN", {"activations": ["Relu"]}),
        ("LSTM", {"peepholes": True}),
    ],
    ids=str,
)
def test_a_recurrence_with_attributes_is_onnxruntimes(op: str, direction: str, attributes: dict[str, Any]) -> None:
    check_recurrence(op, direction, "states", **attributes)


def check_recurrence(op: str, direction: str, options: str, peepholes: bool = False, **attributes: Any) -> None:
    """Rows come first in the file, as in every input; a transpose brings the steps to the front."""
    import onnx.helper as make

    from tests.profiler.onnx.oracle import deviation, graph_bytes, run_oracle, run_ours, session

    ways, hidden, gates = (2 if direction == "bidirectional" else 1), 3, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    arrays = {"x": np.ascontiguousarray(STEPS.transpose(1, 0, 2))}
    constants = {"w": floats(ways, gates * hidden, 4), "r": floats(ways, gates * hidden, hidden, seed=1)}
    names = ["steps", "w", "r", "", "", "", "", ""]
    nodes = [make.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2])]
    if options != "plain":
        constants["b"] = floats(ways, 2 * gates * hidden, seed=2)
        names[3] = "b"
    for index, name in enumerate(["h", "c"] if op == "LSTM" else ["h"]):
        if options == "states":
            arrays[name] = floats(3, ways, hidden, seed=3 + index)
            nodes.append(make.make_node("Transpose", [name], [f"{name}0"], perm=[1, 0, 2]))
            names[5 + index] = f"{name}0"
    if peepholes:
        constants["p"] = floats(ways, 3 * hidden, seed=6)
        names[7] = "p"
    while not names[-1]:
        names.pop()
    outputs = ["y", "yh", "yc"][: 3 if op == "LSTM" else 2]
    if options == "no outputs but the last":
        outputs[0] = ""
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * ways
    node = make.make_node(op, names, outputs, hidden_size=hidden, direction=direction, **attributes)
    content = graph_bytes([*nodes, node], arrays, constants, [name for name in outputs if name])
    given = list(arrays.values())
    theirs = run_oracle(session(content), given)
    assert deviation(run_ours(load_bytes(content), given), theirs) <= 1e-4


@given(data=st.data())
@settings(max_examples=40)
def test_any_slice_is_onnxruntimes(data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.sampled_from([1, 2, -1, -2]), min_size=1, max_size=2, unique_by=lambda axis: axis % 3))
    bound = st.integers(-9, 9) | st.sampled_from([2**31 - 1, 2**63 - 1, -(2**31)])
    starts = [data.draw(st.integers(-9, 9)) for _ in axes]
    ends = [data.draw(bound) for _ in axes]
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in axes]
    check("Slice", X, ints(*starts), ints(*ends), ints(*axes), ints(*steps))


@given(data=st.data())
@settings(max_examples=40)
def test_any_pooling_is_onnxruntimes(data: st.DataObject) -> None:
    kernel = [data.draw(st.integers(1, 4)) for _ in range(2)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(2)]
    # The padding is smaller than the kernel: a window of nothing but padding has no mean and no largest entry.
    pads = [data.draw(st.integers(0, kernel[index % 2] - 1)) for index in range(4)]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    options["ceil_mode"] = data.draw(st.integers(0, 1))
    if data.draw(st.booleans()):
        check("MaxPool", IMAGE, opset=22, **options)
    else:
        check("AveragePool", IMAGE, opset=22, count_include_pad=data.draw(st.integers(0, 1)), **options)


@given(data=st.data())
@settings(max_examples=40)
def test_any_broadcast_is_onnxruntimes(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from("Add Sub Mul Div Max Min Less Equal".split()))
    shape = data.draw(st.sampled_from([(), (1,), (6,), (4, 1), (4, 6), (1, 1, 6), (1, 4, 6)]))
    operands = [X, Const(np.array(floats(*shape)))]
    check(op, *(operands if data.draw(st.booleans()) else operands[::-1]))


REFUSED = [
    case("MaxPool", IMAGE, outputs=2, kernel_shape=[2, 2]),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], storage_order=1, outputs=2),
    case(
        "Resize",
        IMAGE,
        None,
        Const(np.array([1, 1, 2, 2], dtype=np.float32)),
        mode="linear",
        exclude_outside=1,
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
    case("Resize", IMAGE, None, Const(np.array([2, 1, 1, 1], dtype=np.float32))),
    case("Pad", X, ints(1, 0, 0, 0, 0, 0), mode="edge"),
    case("Reshape", X, X[:, 0, 0].astype(np.int64)),
    case("Squeeze", X, ints(1)),
    case("LRN", IMAGE, size=4),
    case("Dropout", X, scalar(0.5), Const(np.array(True))),
    case("Expand", X, ints(1, 3, 1)),
]


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_is_not_implemented_is_refused_with_the_name_of_the_node(case: Case) -> None:
    op, inputs, options = case
    with pytest.raises(CaptureError, match=rf"{op} 'tested' \(opset 17\) cannot be run"):
        load_bytes(node_bytes(op, *inputs, **options))


def test_every_operation_is_tested() -> None:
    tested = {op for op, _, _ in ALL} | {"LSTM", "GRU", "RNN"}
    elsewhere = {"Range", "ConstantOfShape"}  # in test_graphs.py: they need a graph around them
    newer = {"Swish"}  # onnxruntime does not have it yet
    assert known_operations().keys() - tested == elsewhere | newer


def test_every_version_of_a_known_operation_is_known() -> None:
    """Up to opset 28: what onnx defines later is refused until somebody has read it."""
    from onnx import defs

    known = known_operations()
    versions = {
        (name, defs.get_schema(name, opset).since_version)
        for name in known
        for opset in range(13, min(defs.onnx_opset_version(), 28) + 1)
        if defs.has(name, opset)
    }
    assert {(name, version) for name, version in versions if version not in known[name]} == set()
