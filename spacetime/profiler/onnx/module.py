"""A graph as an nn.Module: it runs the nodes in order with torch. Used by profiler/onnx/ only.

torch.export traces the running away: what remains are the calls, as if they had been written by hand. Weights
are parameters; constants that nobody trains (masks, indices) move with the module but are none of its weights.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spacetime.profiler.onnx.graph import Graph, Numbers, Value
from spacetime.profiler.onnx.registry import evaluate


class OnnxGraph(nn.Module):
    """Inputs by position or by name, in the order of the file; one tensor or a tuple of tensors comes back."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph_inputs = tuple(each.name for each in graph.inputs)
        self.graph_outputs = graph.outputs
        self.nodes = graph.nodes
        self._numbers = {name: value for name, value in graph.constants.items() if isinstance(value, Numbers)}
        self._constants: dict[str, Tensor] = {}
        self._parameter_of: dict[str, str] = {}
        self._enter({name: value for name, value in graph.constants.items() if isinstance(value, Tensor)})
        self._last_uses = _last_uses(graph)
        self._signature = _signature(self.graph_inputs)

    def _enter(self, tensors: dict[str, Tensor]) -> None:
        """Weights become parameters; those that are the same become one."""
        kept: dict[tuple[Any, ...], list[tuple[Tensor, str]]] = {}
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                self._constants[name] = tensor
                continue
            known = kept.setdefault((tensor.shape, tensor.dtype), [])
            attribute = next((other for each, other in known if _are_tied(each, tensor)), None)
            if attribute is None:
                attribute = self._attribute_name(name)
                known.append((tensor, attribute))
                self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
            self._parameter_of[name] = attribute

    def _attribute_name(self, name: str) -> str:
        plain = "weight_" + re.sub(r"\W", "_", name).strip("_")
        taken = sum(1 for known in self._parameters if known == plain or re.fullmatch(rf"{plain}_\d+", known))
        return plain if not taken else f"{plain}_{taken}"

    def _apply(self, fn: Any, recurse: bool = True) -> OnnxGraph:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._constants = {name: fn(tensor) for name, tensor in self._constants.items()}
        return self

    @property
    def forward(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:  # type: ignore[override]
        """A function of exactly the inputs of the file: torch.export asks for its signature."""

        def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
            return self.run(self._signature.bind(*args, **kwargs).args)

        forward.__signature__ = self._signature  # type: ignore[attr-defined]
        return forward

    def run(self, inputs: Iterable[Tensor]) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Value | None] = {"": None, **self._numbers, **self._constants}
        values |= {name: getattr(self, attribute) for name, attribute in self._parameter_of.items()}
        values |= dict(zip(self.graph_inputs, inputs, strict=True))
        device = _device(values[self.graph_inputs[0]])
        for node, unused in zip(self.nodes, self._last_uses, strict=True):
            results = evaluate(node, [values[name] for name in node.inputs], device)
            values.update(zip(node.outputs, results, strict=False))
            for name in unused:
                values.pop(name, None)
        outputs = tuple(_tensor(values[name], device) for name in self.graph_outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def _are_tied(one: Tensor, other: Tensor) -> bool:
    """The same memory, or equal matrices: exporters write a tied one twice, the second transposed.

    Equal vectors say nothing, and neither do matrices of one value: they may just not have been trained.
    """
    if one.data_ptr() == other.data_ptr():
        return one.stride() == other.stride()
    if one.ndim != 2 or one.numel() < 64 or not torch.equal(one[0], other[0]):
        return False
    return torch.equal(one, other) and bool((one != one[0, 0]).any())


def _signature(names: Iterable[str]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters: dict[str, inspect.Parameter] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name)
        is_taken = not plain.isidentifier() or keyword.iskeyword(plain) or plain == "self"
        plain = f"input_{plain}" if is_taken else plain
        while plain in parameters:
            plain += "_"
        parameters[plain] = inspect.Parameter(plain, kind)
    return inspect.Signature(list(parameters.values()))


def _last_uses(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """After every node, the values that nobody reads any more."""
    seen = set(graph.outputs) | set(graph.constants) | {""}
    uses: list[tuple[str, ...]] = []
    for node in reversed(graph.nodes):
        names = dict.fromkeys((*node.inputs, *node.outputs))
        uses.append(tuple(name for name in names if name not in seen))
        seen.update(names)
    return tuple(reversed(uses))


def _device(value: Value | None) -> torch.device:
    assert isinstance(value, Tensor)
    return value.device


def _tensor(value: Value | None, device: torch.device) -> Tensor:
    assert value is not None
    return value.tensor(device) if isinstance(value, Numbers) else value
