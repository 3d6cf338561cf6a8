"""Decompositions that some versions of torch get wrong. Used by capture/export.py only.

torch 2.11 removes the rows of an LSTM's final states instead of the dimension that it had added (`squeeze(1)` for
`squeeze(0)`): with several rows they come out with a dimension too many, with one row they lose it. 2.13 is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LSTM = torch.ops.aten.lstm.input


def repaired(table: dict[Any, Any]) -> dict[Any, Any]:
    """The table, with `lstm` in the place of torch's where that gets the final states wrong."""
    theirs = table.get(_LSTM)
    return table if theirs is None or _is_right(theirs) else {**table, _LSTM: lstm}


def _is_right(decomposition: Any) -> bool:
    """Asked, not looked up by version: of two rows. In float64, which no library has a layer of its own for."""
    steps, rows, size = 1, 2, 3
    states = [torch.zeros(1, rows, size, dtype=torch.float64) for _ in range(2)]
    params = [torch.zeros(4 * size, size, dtype=torch.float64) for _ in range(2)]
    x = torch.zeros(steps, rows, size, dtype=torch.float64)
    found = decomposition(x, states, params, False, 1, 0.0, False, False, False)
    return all(found[1 + index].shape == states[index].shape for index in range(2))


def lstm(
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten.lstm.input, step by step: the same operations as torch 2.13 makes of it."""
    ways = 2 if bidirectional else 1
    number = len(params) // (num_layers * ways)
    hidden, cells = map(tuple, states)
    finals: list[tuple[Tensor, Tensor]] = []
    x = x.transpose(0, 1) if batch_first else x
    for layer in range(num_layers):
        outputs = []
        for index in range(ways * layer, ways * (layer + 1)):
            own = params[number * index : number * (index + 1)]
            is_reverse = index > ways * layer
            output, *final = _one_way(x, hidden[index], cells[index], own, has_biases, is_reverse)
            outputs.append(output)
            finals.append((final[0], final[1]))
        x = torch.cat(outputs, 2) if bidirectional else outputs[0]
        if train and dropout and layer < num_layers - 1:
            x = torch.dropout(x, dropout, True)
    x = x.transpose(0, 1) if batch_first else x
    return x, torch.stack([final for final, _ in finals], 0), torch.stack([final for _, final in finals], 0)


def _one_way(
    x: Tensor, hidden: Tensor, cell: Tensor, params: Sequence[Tensor], has_biases: bool, is_reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of one layer in one direction: the inputs' part of all gates is one product."""
    of_input, of_hidden = params[:2]
    input_bias, hidden_bias = params[2:4] if has_biases else (None, None)
    projection = params[-1] if len(params) % 2 else None
    hidden, cell = hidden.unsqueeze(0), cell.unsqueeze(0)
    gates = F.linear(x, of_input, input_bias)
    outputs = []
    for step in gates.flip(0) if is_reverse else gates:
        inward, forget, content, outward = (F.linear(hidden, of_hidden, hidden_bias) + step).chunk(4, 2)
        inward, forget, content, outward = inward.sigmoid(), forget.sigmoid(), content.tanh(), outward.sigmoid()
        cell = forget * cell + inward * content
        hidden = outward * cell.tanh()
        hidden = hidden if projection is None else F.linear(hidden, projection)
        outputs.append(hidden)
    if is_reverse:
        outputs.reverse()
    return torch.cat(outputs, 0), hidden.squeeze(0), cell.squeeze(0)
