"""Decompositions of our own, of recurrent layers and cells. Used by capture/export.py only.

Of LSTMs: torch 2.11 removes the rows of the final states instead of the dimension that it had added (`squeeze(1)` for
`squeeze(0)`): with several rows they come out with a dimension too many, with one row they lose it. That of 2.13 is
right, but makes one operation of oneDNN's out of a layer unless oneDNN is switched off for the whole process. Of
cells: torch has them in C++ only, where a linear is several operations. The operations are the same as torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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


def lstm_cell(
    x: Tensor,
    states: Sequence[Tensor],
    of_input: Tensor,
    of_hidden: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    hidden, cell = states
    gates = F.linear(hidden, of_hidden, hidden_bias) + F.linear(x, of_input, input_bias)
    inward, forget, content, outward = gates.unsafe_chunk(4, 1)
    inward, forget, content, outward = inward.sigmoid(), forget.sigmoid(), content.tanh(), outward.sigmoid()
    cell = forget * cell + inward * content
    return outward * cell.tanh(), cell


def gru_cell(
    x: Tensor,
    hidden: Tensor,
    of_input: Tensor,
    of_hidden: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> Tensor:
    inputs = F.linear(x, of_input, input_bias).unsafe_chunk(3, 1)
    states = F.linear(hidden, of_hidden, hidden_bias).unsafe_chunk(3, 1)
    reset = (states[0] + inputs[0]).sigmoid()
    update = (states[1] + inputs[1]).sigmoid()
    content = (inputs[2] + states[2] * reset).tanh()
    return (hidden - content) * update + content


def rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor,
        hidden: Tensor,
        of_input: Tensor,
        of_hidden: Tensor,
        input_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
    ) -> Tensor:
        return activation(F.linear(hidden, of_hidden, hidden_bias) + F.linear(x, of_input, input_bias))

    return cell


OURS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lstm.input: lstm,
    torch.ops.aten.lstm_cell.default: lstm_cell,
    torch.ops.aten.gru_cell.default: gru_cell,
    torch.ops.aten.rnn_tanh_cell.default: rnn_cell(torch.tanh),
    torch.ops.aten.rnn_relu_cell.default: rnn_cell(torch.relu),
}
