"""Files that are damaged, hostile, too old, too large or something else: an error in three parts, before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

import numpy as np
import onnx
import torch
from onnx import helper
from onnx.helper import make_node as node
from torch._subclasses.fake_tensor import FakeTensor

from spacetime.errors import CaptureError, OptionError, SpacetimeError
from spacetime.profiler.memory import available_bytes
from spacetime.profiler.onnx import file, load_onnx
from tests.profiler.onnx.oracle import floats, graph_bytes

X = floats(2, 4)
WEIGHT = floats(4, 300)


def good(opset: int = 17) -> onnx.ModelProto:
    content = graph_bytes([node("MatMul", ["x", "w"], ["y"])], {"x": X}, {"w": WEIGHT}, ["y"], opset)
    return onnx.ModelProto.FromString(content)


def refused(path: Path, kind: type[SpacetimeError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load_onnx(path)
    error = caught.value
    assert error.what and error.facts and error.next_step
    for part in parts:
        assert part in str(error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model.onnx"


def test_a_good_file_loads(path: Path) -> None:
    onnx.save(good(), path)
    model = load_onnx(str(path))
    assert torch.allclose(model.module(torch.from_numpy(X)), torch.from_numpy(X @ WEIGHT), atol=1e-5)
    assert model.opset == 17 and model.input_names == ("x",) and model.output_names == ("y",)


def test_no_file_and_a_folder(path: Path) -> None:
    refused(path, OptionError, "no such file")
    refused(path.parent, OptionError, "folder")


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 a zip", b"not a model at all", b"\x80\x02}q\x00."])
def test_not_onnx(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, OptionError, "truncated or no ONNX model", f"{len(content)} bytes")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated(path: Path, share: float) -> None:
    content = good().SerializeToString()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, OptionError, "truncated or no ONNX model")


def test_larger_than_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(good(), path)
    monkeypatch.setattr(file, "available_bytes", lambda: 1000)
    refused(path, OptionError, "does not fit in memory")


def test_an_input_larger_than_memory(path: Path) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 10**13])
    graph = helper.make_graph([node("Relu", ["x"], ["y"])], "g", [x], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    refused(path, OptionError, "does not fit in memory", "74505")


def test_rows_as_large_as_half_of_the_memory_are_not_allocated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a file takes no memory for its inputs, however many rows stand for any number of them."""
    size = available_bytes() // 16
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", size])
    graph = helper.make_graph([node("Relu", ["x"], ["y"])], "g", [x], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    empty = torch.empty

    def small_empty(*arguments: Any, **options: Any) -> torch.Tensor:
        found = empty(*arguments, **options)
        assert isinstance(found, FakeTensor) or found.numel() < 1000
        return found

    monkeypatch.setattr(torch, "empty", small_empty)
    assert load_onnx(path).inputs[0].shape == (size,)


@pytest.mark.parametrize("is_external", [False, True])
def test_a_shape_below_zero(path: Path, is_external: bool) -> None:
    """Numpy takes any negative size for the one that follows from the others."""
    model = good()
    weight = model.graph.initializer[0]
    if is_external:
        onnx.external_data_helper.set_external_data(weight, "w.data")
        (path.parent / "w.data").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
    weight.dims[0] = -4
    path.write_bytes(model.SerializeToString())
    refused(path, CaptureError, "'w' cannot be read", "[-4, 300]")


def test_larger_than_protobuf(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(good(), path)
    monkeypatch.setattr(file, "MAX_PROTOBUF_BYTES", 1000)
    refused(path, OptionError, "protobuf", "external data")


def test_there_is_memory() -> None:
    assert 0 < available_bytes() < 2**50


@pytest.mark.parametrize(("opset", "word"), [(12, "too old"), (1, "too old"), (9999, "too new")])
def test_opsets(path: Path, opset: int, word: str) -> None:
    proto = good()
    proto.opset_import[0].version = opset
    path.write_bytes(proto.SerializeToString())
    refused(path, CaptureError, word, f"opset {opset}")


@pytest.mark.parametrize("opset", range(13, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_loads(path: Path, opset: int) -> None:
    onnx.save(good(opset), path)
    assert load_onnx(path).opset == opset


def test_everything_unsupported_is_named_at_once(path: Path) -> None:
    """Before the weights are looked at: their data file is missing as well."""
    proto = good()
    proto.graph.node.insert(0, node("NonZero", ["x"], ["a"], name="first"))
    proto.graph.node.insert(1, node("Bernoulli", ["x"], ["b"], name="second"))
    proto.graph.node.insert(2, node("Special", ["a", "b"], ["x2"], name="third", domain="com.vendor"))
    proto.graph.node[3].input[0] = "x2"
    external(proto, "absent.bin")
    path.write_bytes(proto.SerializeToString())
    refused(
        path, CaptureError, "NonZero 'first'", "Bernoulli 'second'", "com.vendor.Special 'third'", "(opset 17)", "3 not"
    )


def test_the_opset_of_an_unsupported_operation_is_that_of_its_domain(path: Path) -> None:
    proto = good()
    proto.graph.node.insert(0, node("Special", ["x"], ["x2"], name="first", domain="com.vendor"))
    proto.graph.node[1].input[0] = "x2"
    proto.opset_import.append(helper.make_opsetid("com.vendor", 3))
    path.write_bytes(proto.SerializeToString())
    refused(path, CaptureError, "com.vendor.Special 'first' (opset 3)")


def test_what_no_output_needs_may_be_unsupported(path: Path) -> None:
    proto = good()
    proto.graph.node.insert(0, node("NonZero", ["x"], ["a"], name="first"))
    path.write_bytes(proto.SerializeToString())
    load_onnx(path)


def test_constants_that_no_node_needs_are_not_read(path: Path) -> None:
    """Nor taken for inputs, where the file lists them there as well."""
    proto = good()
    proto.graph.initializer.append(helper.make_tensor("names", onnx.TensorProto.STRING, [1], [b"cat"]))
    proto.graph.input.append(helper.make_tensor_value_info("names", onnx.TensorProto.STRING, [1]))
    path.write_bytes(proto.SerializeToString())
    assert load_onnx(path).input_names == ("x",)


def test_an_input_may_have_any_name(path: Path) -> None:
    import spacetime

    for name in ("self", "lambda", "0", "a.b", "für/x:0", "///"):
        proto = good()
        proto.graph.node[0].input[0] = proto.graph.input[0].name = name
        path.write_bytes(proto.SerializeToString())
        model = load_onnx(path)
        assert model.input_names == (name,)
        assert spacetime.capture(model.module, model.example(2)).kernels


def test_local_functions_are_inlined(path: Path) -> None:
    body = [node("Relu", ["a"], ["r"]), node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = good()
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node[0].input[0] = "t"
    proto.graph.node.insert(0, node("Twice", ["x"], ["t"], domain="local"))
    path.write_bytes(proto.SerializeToString())
    x = torch.from_numpy(X)
    expected = (x.relu() + x) @ torch.from_numpy(WEIGHT)
    assert torch.allclose(load_onnx(path).module(x), expected, atol=1e-5)


def no_inputs(proto: onnx.ModelProto) -> None:
    del proto.graph.input[:]
    proto.graph.node[0].input[0] = "w"


def scalar_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, []))


def unknown_rank(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")


def strings(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def different_rows(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("z", 1, [1, 4]))


def undefined(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nobody"


def written_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Relu", ["x"], ["y"]))


def no_such_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nobody"


def no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def wrong_size(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 10**9


def wrong_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[:] = [300, 4]


def too_many_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input.append("x")


def unknown_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("axes", [1]))


def attribute_of_another_type(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].CopyFrom(node("Softmax", ["x"], ["y"], axis="one", name="soft"))


def calls_itself(proto: onnx.ModelProto) -> None:
    body = [node("Again", ["a"], ["b"], domain="local")]
    proto.functions.append(
        helper.make_function("local", "Again", ["a"], ["b"], body, [helper.make_opsetid("local", 1)])
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node[0].CopyFrom(node("Again", ["x"], ["y"], domain="local"))


def eight_bit_floats(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].data_type = onnx.TensorProto.FLOAT8E4M3FN


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (no_inputs, "no inputs"),
        (scalar_input, "no row dimension"),
        (unknown_rank, "no row dimension"),
        (strings, "element type 8"),
        (different_rows, "do not share their first dimension"),
        (undefined, "reads 'nobody'"),
        (written_twice, "writes 'y' again"),
        (no_such_output, "nothing writes the output"),
        (no_outputs, "no outputs"),
        (wrong_size, "the constant 'w' cannot be read"),
        (wrong_weight, "cannot be run"),
        (eight_bit_floats, "cannot be read"),
        (too_many_inputs, "MatMul 'number 0' is not what ONNX defines"),
        (unknown_attribute, "axes"),
        (attribute_of_another_type, "Softmax 'soft' is not what ONNX defines"),
        (calls_itself, "its local functions cannot be inlined"),
    ],
)
def test_damaged_graphs(path: Path, damage: Callable[[Any], None], part: str) -> None:
    proto = good()
    damage(proto)
    path.write_bytes(proto.SerializeToString())
    refused(path, CaptureError, part)


def test_without_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(good(), path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(path, OptionError, "pip install spacetime-gpu[onnx]")


# -- external data ------------------------------------------------------------------------------------------------


def external(proto: onnx.ModelProto, location: str, **entries: int | str) -> None:
    """Move the weight's data out of the message."""
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def save_external(path: Path, location: str, **entries: int | str) -> None:
    proto = good()
    external(proto, location, **entries)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("entries", [{}, {"offset": 0, "length": WEIGHT.nbytes}, {"offset": 128}])
def test_external_data(path: Path, entries: dict[str, int]) -> None:
    (path.parent / "data").mkdir()
    (path.parent / "data" / "weights.bin").write_bytes(b"\xff" * entries.get("offset", 0) + WEIGHT.tobytes())
    save_external(path, "data/weights.bin", **entries)
    assert torch.allclose(load_onnx(path).module(torch.from_numpy(X)), torch.from_numpy(X @ WEIGHT), atol=1e-5)


def test_external_data_by_the_onnx_package(path: Path) -> None:
    onnx.save_model(good(), path, save_as_external_data=True, location="all.bin", size_threshold=0)
    assert torch.allclose(load_onnx(path).module(torch.from_numpy(X)), torch.from_numpy(X @ WEIGHT), atol=1e-5)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/hostname", "data/../../secret.bin", "", "..\\secret.bin", "C:\\secret.bin", "a\0b"],
)
def test_external_data_outside_of_the_folder(path: Path, location: str) -> None:
    (path.parent.parent / "secret.bin").write_bytes(WEIGHT.tobytes())
    save_external(path, location)
    refused(path, OptionError, "outside the model's folder")


def test_external_data_behind_a_link(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(WEIGHT.tobytes())
    (path.parent / "weights.bin").symlink_to(path.parent.parent / "secret.bin")
    save_external(path, "weights.bin")
    refused(path, OptionError, "outside the model's folder")


def test_external_data_missing(path: Path) -> None:
    save_external(path, "weights.bin")
    refused(path, OptionError, "missing", "weights.bin")
    (path.parent / "weights.bin").mkdir()
    refused(path, OptionError, "missing", "weights.bin")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({}, "incomplete"),
        ({"offset": 64}, "incomplete"),
        ({"length": 16}, "wrong size"),
        ({"offset": "-8"}, "not a number"),
        ({"length": "many"}, "not a number"),
    ],
)
def test_external_data_of_another_size(path: Path, entries: dict[str, int | str], part: str) -> None:
    (path.parent / "weights.bin").write_bytes(WEIGHT.tobytes()[:-4])
    save_external(path, "weights.bin", **entries)
    refused(path, SpacetimeError, part)


def test_external_data_larger_than_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "weights.bin").write_bytes(WEIGHT.tobytes())
    save_external(path, "weights.bin")
    monkeypatch.setattr(file, "available_bytes", lambda: WEIGHT.nbytes - 1)
    refused(path, OptionError, "does not fit in memory")


def test_an_external_attribute_is_checked_too(path: Path) -> None:
    """A Constant node may hold an external tensor as well."""
    proto = good()
    external(proto, "../secret.bin")
    constant = node("Constant", [], ["w"])
    attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(proto.graph.initializer[0])
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, constant)
    path.write_bytes(proto.SerializeToString())
    refused(path, OptionError, "outside the model's folder")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.bool_])
def test_types_of_constants(path: Path, dtype: Any) -> None:
    constant = (np.abs(floats(4)) * 10).astype(dtype)
    nodes = [node("Cast", ["c"], ["f"], to=1), node("Add", ["x", "f"], ["y"])]
    path.write_bytes(graph_bytes(nodes, {"x": X}, {"c": constant}, ["y"]))
    expected = torch.from_numpy(X + constant.astype(np.float32))
    assert torch.allclose(load_onnx(path).module(torch.from_numpy(X)), expected)


def test_bfloat16_constants(path: Path) -> None:
    nodes = [node("Cast", ["c"], ["f"], to=1), node("Add", ["x", "f"], ["y"])]
    proto = onnx.ModelProto.FromString(graph_bytes(nodes, {"x": X}, {"c": floats(4)}, ["y"]))
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("c", onnx.TensorProto.BFLOAT16, [4], [0.5, 1.0, -2.0, 3.0]))
    path.write_bytes(proto.SerializeToString())
    expected = torch.from_numpy(X) + torch.tensor([0.5, 1.0, -2.0, 3.0])
    assert torch.allclose(load_onnx(path).module(torch.from_numpy(X)), expected)
