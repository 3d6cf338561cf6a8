"""Modules that cannot be expressed as a graph of rows are refused with the reason, never half-captured."""

from __future__ import annotations

import linecache
import logging
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx import graph_module

from spacetime.capture.export import Unfusible, _tracing, export
from spacetime.capture.named import ByName
from tests.capture.sketches import draw, sketch


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


class OverPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, pair: Pair) -> Tensor:
        difference: Tensor = self.linear(pair.left) - self.linear(pair.right)
        return difference


def branching(module: Any, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def changes_its_input(module: Any, x: Tensor) -> Tensor:
    return x.mul_(2)


VECTOR = draw(((8,),), 2, seed=0)


@pytest.mark.parametrize(
    ("module", "inputs", "reason"),
    [
        (Counting(), VECTOR, "writes its own state: buffer_mutation of calls"),
        (nn.BatchNorm1d(8).train(), VECTOR, "writes its own state: buffer_mutation of running_mean"),
        (sketch(changes_its_input, {}), VECTOR, "writes its own state: user_input_mutation"),
        (sketch(branching, {}), VECTOR, "torch.export refused the module"),
        (sketch(lambda m, x: x.view(2, 2, 4), {}), VECTOR, "torch.export refused the module|fixes the number of rows"),
        (nn.Linear(8, 3), (3.0,), "input 0 is a float, not a tensor"),
        (nn.Linear(8, 3), (torch.tensor(1.0),), "input 0 has no row dimension"),
        (
            sketch(lambda m, x, y: x + y.sum(), {}),
            (torch.ones(2, 8), torch.ones(3, 8)),
            "disagree on the number of rows",
        ),
    ],
    ids="counter batch_norm input branch fixed_rows float scalar rows_differ".split(),
)
def test_what_has_no_graph_of_rows_is_refused_with_the_reason(
    module: nn.Module, inputs: tuple[Any, ...], reason: str
) -> None:
    with pytest.raises(Unfusible, match=reason):
        export(module, inputs)


@dataclass
class Scores:
    best: Tensor


class DynamicCache(Scores):
    """As Hugging Face's decoders put one into their results, unless told not to."""


def test_a_result_that_nobody_can_look_into_is_refused_with_what_its_owner_can_do() -> None:
    with pytest.raises(Unfusible, match=r"its result holds a Scores, .* register it"):
        export(sketch(lambda m, x: Scores(x * 2), {}), VECTOR)
    decoder = sketch(lambda m, x: DynamicCache(x * 2), {})
    decoder.config = SimpleNamespace(use_cache=True)  # type: ignore[assignment]
    for module in (decoder, ByName(decoder, ("x",))):
        with pytest.raises(Unfusible, match=r"holds a DynamicCache; set config.use_cache = False"):
            export(module, VECTOR)


def test_an_example_of_one_row_is_as_good_as_one_of_many() -> None:
    captured = export(nn.Linear(8, 3), draw(((8,),), 1, seed=0))
    assert [str(node.meta["val"].shape[0]) for node in captured.inputs] == [str(captured.rows)]


def test_inputs_may_be_nested() -> None:
    exported = export(OverPair(), (Pair(*draw(((8,), (8,)), 2, seed=0)),))
    assert len(exported.inputs) == 2


def test_weights_are_the_tensors_of_the_module() -> None:
    module = nn.Linear(8, 3)
    exported = export(module, VECTOR)
    held = {weight.name: weight.tensor.data_ptr() for weight in exported.weights.values()}
    assert held == {"weight": module.weight.data_ptr(), "bias": module.bias.data_ptr()}


def test_exporting_leaves_loggers_and_the_module_as_they_were() -> None:
    module = nn.Linear(8, 3)
    logger = logging.getLogger("torch.export")
    level, before = logger.level, {key: value.clone() for key, value in module.state_dict().items()}
    export(module, VECTOR)
    assert logger.level == level
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


def test_a_refusal_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(Unfusible):
            export(sketch(branching, {}), VECTOR)
    assert capfd.readouterr() == ("", ""), "torch would print the graph so far"
    assert "print" not in vars(torch.export._trace), "elsewhere it may"


def test_what_traces_is_found_before_the_first_export_has_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_export" in _tracing()
    monkeypatch.setitem(sys.modules, "torch.export._trace", None)
    assert _tracing() == {}, "a torch that keeps it elsewhere is no reason to fail"


class AnyArguments(nn.Module):
    """Passes on whatever it is given, as wrappers do."""

    def forward(self, *args: Tensor) -> Tensor:
        return torch.stack(args).sum(0)


def test_a_forward_of_any_arguments_has_rows_as_any_other() -> None:
    exported = export(AnyArguments(), (*VECTOR, *VECTOR))
    assert len(exported.inputs) == 2
    assert {node.meta["val"].shape[0].node.expr for node in exported.inputs} == {exported.rows}


def test_exports_leave_no_text_of_graphs_behind() -> None:
    export(nn.Sequential(nn.Linear(5, 3), nn.ReLU()).eval(), (torch.ones(2, 5),))
    texts, lines = len(graph_module._loader.eval_cache), len(linecache.cache)
    export(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.ones(2, 5),))
    with pytest.raises(Unfusible):
        export(Counting().eval(), (torch.ones(2, 5),))
    assert len(graph_module._loader.eval_cache) == texts
    assert sum(name.startswith("<eval_with_key>") for name in linecache.cache) <= lines
