"""LSTM, GRU and RNN nodes: as torch's own where they are alike, else step by step. Used by profiler/onnx/ only.

ONNX orders the gates i o f c and z r h, torch i f g o and r z n; `torch_weights` turns one into the other. Loading a
file does that once: the node becomes a `TorchRecurrence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Unsupported
from spacetime.profiler.onnx.registry import INTERNAL, op

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # the place of torch's gates among those of ONNX
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu}


def directions(node: Node) -> tuple[bool, ...]:
    """Whether each direction runs from the last step to the first."""
    return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        node.attribute("direction", "forward")
    ]


def activations(node: Node) -> list[tuple[str, ...]]:
    """The functions of each direction."""
    default = _DEFAULTS[node.op]
    names = tuple(name.capitalize() for name in node.attribute("activations") or ())
    names = names or default * len(directions(node))
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown or node.attribute("activation_alpha") or node.attribute("activation_beta"):
        raise Unsupported(f"activations={names} with parameters are not implemented")
    return [names[index : index + len(default)] for index in range(0, len(names), len(default))]


def is_torch_like(node: Node, has_peepholes: bool) -> bool:
    """Whether torch has a recurrence that computes the same."""
    used = set(activations(node))
    if node.op == "RNN":
        if used not in ({("Tanh",)}, {("Relu",)}):
            raise Unsupported(f"activations={sorted(used)} are not implemented for RNN")
        return True
    return used == {_DEFAULTS[node.op]} and not has_peepholes and bool(node.op != "GRU" or _resets_after(node))


def _resets_after(node: Node) -> bool:
    return bool(node.attribute("linear_before_reset", 0))


def torch_weights(node: Node, weight: Tensor, recurrence: Tensor, bias: Tensor | None) -> list[Tensor]:
    """For each direction: input weights, state weights, and both biases if there are any."""
    result = []
    for index in range(weight.shape[0]):
        parts = [weight[index], recurrence[index]]
        parts += [] if bias is None else list(bias[index].chunk(2))
        result += [_reordered(part, GATES[node.op]) for part in parts]
    return result


def _reordered(part: Tensor, gates: Sequence[int]) -> Tensor:
    blocks = part.chunk(len(gates))
    return torch.cat([blocks[gate] for gate in gates])


def _check(node: Node, lengths: Tensor | None) -> None:
    if lengths is not None:
        raise Unsupported("sequence_lens (sequences of different lengths in one batch) is not implemented")
    if "clip" in node.attributes or node.attribute("input_forget", 0):
        raise Unsupported("clip and input_forget are not implemented")


@op("LSTM", 7, 14, 22)
def _lstm(node: Node, x: Tensor, weight: Tensor, recurrence: Tensor, *optional: Tensor | None) -> Any:
    return _recurrence(node, x, weight, recurrence, *optional)


@op("GRU", 7, 14, 22)
def _gru(node: Node, x: Tensor, weight: Tensor, recurrence: Tensor, *optional: Tensor | None) -> Any:
    return _recurrence(node, x, weight, recurrence, *optional)


@op("RNN", 7, 14, 22)
def _rnn(node: Node, x: Tensor, weight: Tensor, recurrence: Tensor, *optional: Tensor | None) -> Any:
    return _recurrence(node, x, weight, recurrence, *optional)


def _recurrence(
    node: Node,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    memory: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check(node, lengths)
    if is_torch_like(node, peepholes is not None):
        weights = torch_weights(node, weight, recurrence, bias)
        return _rows_second(node, x, hidden, memory, _run_torch, weights)
    return _rows_second(node, x, hidden, memory, _stepwise, (weight, recurrence, bias, peepholes))


@op("TorchRecurrence", domain=INTERNAL)
def _torch_recurrence(
    node: Node, x: Tensor, hidden: Tensor | None, memory: Tensor | None, *weights: Tensor
) -> tuple[Tensor, ...]:
    return _rows_second(node, x, hidden, memory, _run_torch, weights)


def _kind(node: Node) -> str:
    return str(node.attribute("kind", node.op))


def _rows_second(
    node: Node, x: Tensor, hidden: Tensor | None, memory: Tensor | None, run: Any, weights: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """ONNX states are [directions, rows, hidden]; with layout=1 rows come first everywhere."""
    rows_first = bool(node.attribute("layout", 0))
    count = len(directions(node))
    if rows_first:
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        memory = None if memory is None else memory.transpose(0, 1)
    if hidden is None:
        hidden = x.new_zeros(count, x.shape[1], node.attributes["hidden_size"])
    if memory is None:
        memory = x.new_zeros(count, x.shape[1], node.attributes["hidden_size"])
    outputs, *states = run(node, x, hidden, memory, *weights)
    outputs = outputs.unflatten(2, (count, -1))  # [steps, rows, directions, hidden]
    if rows_first:
        return (outputs.transpose(0, 1), *(state.transpose(0, 1) for state in states))
    return (outputs.transpose(1, 2), *states)


def _run_torch(node: Node, x: Tensor, hidden: Tensor, memory: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """[steps, rows, directions * hidden] and the last states."""
    ways = directions(node)
    backwards_only = ways == (True,)
    x = x.flip(0) if backwards_only else x
    has_biases = len(weights) == 4 * len(ways)
    settings = (list(weights), has_biases, 1, 0.0, False, len(ways) == 2, False)
    if _kind(node) == "LSTM":
        outputs, *states = torch.lstm(x, [hidden, memory], *settings)
    elif _kind(node) == "GRU":
        outputs, *states = torch.gru(x, hidden, *settings)
    else:
        simple = torch.rnn_relu if node.attribute("activations", ["Tanh"])[0].capitalize() == "Relu" else torch.rnn_tanh
        outputs, *states = simple(x, hidden, *settings)
    return (outputs.flip(0) if backwards_only else outputs, *states)


def _stepwise(
    node: Node,
    x: Tensor,
    hidden: Tensor,
    memory: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    peepholes: Tensor | None,
) -> tuple[Tensor, ...]:
    columns, last_hidden, last_memory = [], [], []
    for index, (backwards, functions) in enumerate(zip(directions(node), activations(node), strict=True)):
        step = _Step(node, functions, weight[index], recurrence[index], bias, peepholes, index)
        state, cell = hidden[index], memory[index]
        outputs: list[Tensor] = []
        for time in range(x.shape[0])[:: -1 if backwards else 1]:
            state, cell = step.lstm(x[time], state, cell) if node.op == "LSTM" else (step.gru(x[time], state), cell)
            outputs.append(state)
        columns.append(torch.stack(outputs[::-1] if backwards else outputs))
        last_hidden.append(state)
        last_memory.append(cell)
    states = [torch.stack(last_hidden)] + ([torch.stack(last_memory)] if node.op == "LSTM" else [])
    return (torch.cat(columns, dim=2), *states)


class _Step:
    """One step of one direction, as the ONNX specification writes it."""

    def __init__(
        self,
        node: Node,
        functions: tuple[str, ...],
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None,
        peepholes: Tensor | None,
        index: int,
    ) -> None:
        self.functions = [_ACTIVATIONS[name] for name in functions]
        self.resets_after = _resets_after(node)
        self.weight, self.recurrence = weight, recurrence
        self.input_bias: Tensor | None = None
        self.state_bias: Tensor | None = None
        if bias is not None:
            self.input_bias, self.state_bias = bias[index].chunk(2)
        self.peepholes = (0.0, 0.0, 0.0) if peepholes is None else peepholes[index].chunk(3)

    def lstm(self, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate, squash = self.functions
        at_input, at_output, at_forget = self.peepholes
        sums = functional.linear(x, self.weight, self.input_bias)
        sums = sums + functional.linear(hidden, self.recurrence, self.state_bias)
        entering, leaving, forgetting, new = sums.chunk(4, dim=1)
        kept = gate(forgetting + at_forget * memory) * memory
        memory = kept + gate(entering + at_input * memory) * candidate(new)
        return gate(leaving + at_output * memory) * squash(memory), memory

    def gru(self, x: Tensor, hidden: Tensor) -> Tensor:
        gate, candidate = self.functions
        size = hidden.shape[1]
        update_x, reset_x, new_x = functional.linear(x, self.weight, self.input_bias).chunk(3, dim=1)
        biases = (None, None) if self.state_bias is None else (self.state_bias[: 2 * size], self.state_bias[2 * size :])
        gates = functional.linear(hidden, self.recurrence[: 2 * size], biases[0])
        update_h, reset_h = gates.chunk(2, dim=1)
        update, reset = gate(update_x + update_h), gate(reset_x + reset_h)
        if self.resets_after:
            new = new_x + reset * functional.linear(hidden, self.recurrence[2 * size :], biases[1])
        else:
            new = new_x + functional.linear(reset * hidden, self.recurrence[2 * size :], biases[1])
        return (1 - update) * candidate(new) + update * hidden
