"""Whole architectures, exported by both exporters of torch: the results of onnxruntime, and programs to share."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import torch
from torch import nn

import spacetime
from spacetime.capture.program import Captured
from spacetime.profiler.onnx import load_onnx
from tests.capture.tenants import Tenants, capture, leaves_of
from tests.profiler.onnx.conftest import Export
from tests.profiler.onnx.models import MODELS
from tests.profiler.onnx.oracle import TOLERANCE, deviation, run_oracle, run_ours, session

HUGGING_FACE = {name for name in MODELS if name.startswith(("bert", "albert", "distil", "gpt2", "vit_hugging"))}
# The older exporter writes attention from opset 14 on, and not all of what GPT-2 does without a mask.
SCRIPT_OPSETS = {name: 13 for name in MODELS} | {
    **dict.fromkeys(("vit", "zoo_bert", "vit_huggingface"), 14),
    **dict.fromkeys(("bert", "albert", "distilbert", "gpt2"), 17),
    "efficientnet": 20,
}
SCRIPT_OPSETS.pop("gpt2_plain")
# One of each kind; the newer exporter takes seconds for a model.
DYNAMO_OPSETS = {
    "shufflenet": 18,
    "bert": 20,
    "gpt2": 23,
    "lstm_two_ways": 18,
}

SLOW = {"resnet50", "vgg19", "unet", "bert_eager", "gpt2_eager", "vit_huggingface"}  # no operation of their own
ALL_FILES = [
    *((name, "dynamo", opset) for name in MODELS for opset in (18, 20, 23)),
    *(
        (name, "script", opset)
        for name, lowest in SCRIPT_OPSETS.items()
        for opset in (13, 14, 17, 20)
        if opset >= lowest
    ),
]
# onnxruntime's Attention does not broadcast a mask over rows and heads that torch exports so.
ALL_FILES.remove(("zoo_bert", "dynamo", 23))


FILES = [(name, "script", opset) for name, opset in SCRIPT_OPSETS.items() if name not in SLOW]
FILES += [(name, "dynamo", opset) for name, opset in DYNAMO_OPSETS.items()]


@pytest.fixture(autouse=True)
def _hugging_face(request: pytest.FixtureRequest) -> None:
    params: dict[str, Any] = getattr(getattr(request.node, "callspec", None), "params", {})
    if params.get("name") in HUGGING_FACE:
        pytest.importorskip("transformers")


def compare(export: Export, name: str, exporter: str, opset: int) -> None:
    path = export(name, exporter, opset)
    model, oracle = load_onnx(path), session(str(path))
    assert model.opset == opset
    for inputs in (MODELS[name].inputs(1), MODELS[name].inputs(3), model.example(2)):
        arrays = [tensor.numpy() for tensor in inputs]
        assert deviation(run_ours(model, arrays), run_oracle(oracle, arrays)) <= TOLERANCE


@pytest.mark.parametrize(("name", "exporter", "opset"), FILES)
def test_an_export_gives_what_onnxruntime_gives(export: Export, name: str, exporter: str, opset: int) -> None:
    compare(export, name, exporter, opset)


@pytest.mark.parametrize(("name", "exporter", "opset"), ALL_FILES if "SPACETIME_ALL_EXPORTS" in os.environ else [])
def test_every_export_is_onnxruntimes_and_can_be_captured(export: Export, name: str, exporter: str, opset: int) -> None:
    """All architectures, exporters and opsets: minutes, so it runs with SPACETIME_ALL_EXPORTS=1 only."""
    compare(export, name, exporter, opset)
    model = load_onnx(export(name, exporter, opset))
    capture(model.module, model.example())


CAPTURED = [("script", name) for name in ("shufflenet", "efficientnet", "squeezenet", "vit", "bert", "gpt2", "lstm")]
CAPTURED += [("dynamo", name) for name in ("bert", "shufflenet")]


@pytest.mark.parametrize(("exporter", "name"), CAPTURED)
def test_an_export_can_be_captured(export: Export, exporter: str, name: str) -> None:
    """Its rows are proven independent, and its layers are the module's."""
    program = captured(export, exporter, name).program
    layers = called_layers(name)
    found = {op: sum(kernel.op == op for kernel in program.kernels) for op in layers}
    assert layers, "the model has layers"
    if name != "lstm":  # its steps are linear layers too
        assert found == layers


_captured: dict[tuple[str, str], Captured] = {}


def captured(export: Export, exporter: str, name: str) -> Captured:
    """Exporting is the slow part: once for all tests."""
    if (exporter, name) not in _captured:
        opset = (SCRIPT_OPSETS if exporter == "script" else DYNAMO_OPSETS)[name]
        model = load_onnx(export(name, exporter, opset))
        _captured[exporter, name] = capture(model.module, model.example(2))
    return _captured[exporter, name]


OPERATIONS = {
    nn.Linear: "linear",
    nn.Conv2d: "conv2d",
    nn.LayerNorm: "layer_norm",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}


def called_layers(name: str) -> dict[str, int]:
    """How often the module of a model calls layers of these kinds."""
    module, counts = MODELS[name].build(), Counter[str]()
    for layer in module.modules():
        op = "linear" if type(layer).__name__ == "Conv1D" else OPERATIONS.get(type(layer))
        if op is not None:
            layer.register_forward_hook(lambda *_, op=op: counts.update([op]))
    leaves_of(module, MODELS[name].inputs(2))
    return dict(counts)


@pytest.mark.parametrize("name", ["shufflenet", "bert"])
def test_exports_of_one_architecture_are_a_cohort(export: Export, tmp_path: Path, name: str) -> None:
    """Two files with different weights share their launches, in any order and with ragged rows."""
    first = load_onnx(export(name, "script", SCRIPT_OPSETS[name])).module
    proto = onnx.load(export(name, "script", SCRIPT_OPSETS[name]))
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array[::-1].copy(), tensor.name))
    onnx.save(proto, tmp_path / "other.onnx")
    second = load_onnx(tmp_path / "other.onnx").module
    inputs = [MODELS[name].inputs(rows) for rows in (3, 1, 2)]
    assert not torch.allclose(leaves_of(first, inputs[0])[0], leaves_of(second, inputs[0])[0])
    tenants = Tenants(captured(export, "script", name), [first, second])
    assert tenants.deviation([1, 0, 1], inputs, MODELS[name].inputs(8)) <= 1e-5


def test_the_older_spelling_of_a_layer_is_the_layer_again(export: Export) -> None:
    """Opset 14 has neither LayerNormalization nor Gelu."""
    model = load_onnx(export("vit", "script", 14))
    assert {"LayerNormalization", "Gelu", "Linear"} <= {node.op for node in model.module.nodes}
    assert not {"Erf", "Pow", "Sqrt"} & {node.op for node in model.module.nodes}


def test_tied_weights_stay_tied(export: Export) -> None:
    """GPT-2's head is its table of tokens, transposed by a node."""
    model = load_onnx(export("gpt2", "script", SCRIPT_OPSETS["gpt2"]))
    tables = [weight for weight in model.module.parameters() if tuple(weight.shape) == (50, 16)]
    assert len(tables) == 1


def test_an_example_is_seeded_and_in_range(export: Export) -> None:
    model = load_onnx(export("bert", "script", 17))
    ids, mask = model.example(5, seed=1)
    assert model.limits == {"x0": 50}
    assert ids.shape == mask.shape == (5, 8)
    assert int(ids.min()) >= 0 and int(ids.max()) < 50
    assert bool((mask == 1).all())
    assert torch.equal(ids, model.example(5, seed=1)[0])
    assert not torch.equal(ids, model.example(5, seed=2)[0])


def test_inputs_may_come_by_name(export: Export) -> None:
    model = load_onnx(export("bert", "script", 17))
    ids, mask = model.example(2)
    assert torch.equal(model.module(ids, mask), model.module(x1=mask, x0=ids))
    assert model.input_names == ("x0", "x1")
    assert model.producer.startswith("pytorch")


def test_a_module_of_a_file_can_be_copied_moved_and_saved(export: Export, tmp_path: Path) -> None:
    import copy
    import pickle

    model = load_onnx(export("gpt2", "script", 17))
    inputs = model.example(2)
    expected = model.module(*inputs)
    assert torch.equal(copy.deepcopy(model.module)(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model.module))(*inputs), expected)
    on_meta = copy.deepcopy(model.module).to("meta")
    assert on_meta(*(tensor.to("meta") for tensor in inputs)).shape == expected.shape


def test_a_file_is_a_tenant(export: Export) -> None:
    model = load_onnx(export("shufflenet", "script", 13))
    inputs = model.example(2)
    with spacetime.Runtime(device="cpu") as runtime:
        tenant = runtime.add(model.module, example=inputs, name="from a file")
        assert torch.allclose(tenant(*inputs), model.module(*inputs), atol=1e-5)
