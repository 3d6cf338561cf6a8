"""The ways of products.py that are no slot kernels: out[r] = activation(x[r] @ W[entry of r].T + b + residual[r]).

All take the operands of slot_linear.py, and run on the current stream. `grouped_mm` and `cublas_batched` read nothing
on the host, so a captured graph serves any mix of tenants; `baddbmm` is for entries one behind the other, with equal
rows each, which only the host can know. What a library leaves out follows as operations of its own. Rows that are idle
end up with whatever was in memory. Used by tune_products.py and kernels/bound/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spacetime.kernels import batched_gemm
from spacetime.kernels.triton.launch import activated
from spacetime.kernels.triton.slot_linear import Operands

_IDLE = 2**31 - 1  # behind every entry


@dataclass(frozen=True, slots=True, eq=False)
class ByEntry:
    """The rows of a lane in the order of the entries that they use, idle rows last. For all of its layers at once."""

    entries: Tensor  # int32[layers, rows], ascending
    order: Tensor  # int64[layers, rows]: which row is at each place
    place: Tensor  # int64[layers, rows]: where each row is

    @classmethod
    def of(cls, entries: Tensor, num_active: Tensor) -> ByEntry:
        """`entries`: int32[layers, rows], -1 for idle rows; garbage behind the first `num_active`."""
        rows = torch.arange(entries.shape[1], device=entries.device)
        live = (rows < num_active) & (entries >= 0)
        ascending, order = torch.sort(torch.where(live, entries, _IDLE), dim=1, stable=True)
        place = torch.empty_like(order).scatter_(1, order, rows.expand_as(order))
        return cls(ascending, order, place)

    def ends(self, layer: int, num_entries: int, m: int) -> Tensor:
        """int32[num_entries]: where the rows of each entry end, in rows of x with `m` each."""
        entries = torch.arange(num_entries, dtype=torch.int32, device=self.entries.device)
        return torch.searchsorted(self.entries[layer], entries, right=True, out_int32=True).mul_(m)


def baddbmm(operands: Operands, activation: str, first: int, slots: int, first_bias: int = 0) -> None:
    """Rows in equal parts for the entries from `first` on; `first_bias`: the same of the bias."""
    x, weight, bias, out = operands.x, operands.weight.stack, operands.bias, operands.out
    n, k = weight.shape[1:]
    x, y = x.reshape(slots, -1, k), out.view(slots, -1, n)
    w = weight[first : first + slots].transpose(1, 2)
    residual = operands.residual
    if bias is not None:
        torch.baddbmm(bias.stack[first_bias : first_bias + slots].unsqueeze(1), x, w, out=y)
    elif residual is not None:
        torch.baddbmm(residual.reshape(y.shape), x, w, out=y)
        residual = None
    else:
        torch.bmm(x, w, out=y)
    _finish(out, None, residual, activation)


def grouped_mm(operands: Operands, activation: str, rows: ByEntry, layer: int, of_bias: Tensor | None) -> None:
    """`of_bias`: int32[rows], the entry of each row in the bias, none of them negative."""
    x, weight, out = operands.x, operands.weight.stack, operands.out
    num_rows, m, k = x.shape
    ordered = x.index_select(0, rows.order[layer]).view(num_rows * m, k)
    product = torch._grouped_mm(ordered, weight.transpose(1, 2), offs=rows.ends(layer, weight.shape[0], m))
    torch.index_select(product.view(num_rows, m, -1), 0, rows.place[layer], out=out)
    _finish(out, _of_rows(operands, of_bias), operands.residual, activation)


def cublas_batched(operands: Operands, activation: str, of_bias: Tensor | None) -> None:
    """A pointer for every row."""
    weight, out = operands.weight, operands.out
    batched_gemm.linear(operands.x, weight.stack, weight.entries, operands.num_active, out)
    _finish(out, _of_rows(operands, of_bias), operands.residual, activation)


def _of_rows(operands: Operands, of_bias: Tensor | None) -> Tensor | None:
    if operands.bias is None:
        return None
    assert of_bias is not None
    return operands.bias.stack.index_select(0, of_bias).unsqueeze(1)


def _finish(out: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> None:
    """In place."""
    if bias is not None:
        out.add_(bias)
    if residual is not None:
        out.add_(residual)
    if activation == "relu":
        out.relu_()
    elif activation == "relu6":
        out.clamp_(0.0, 6.0)
    elif activation == "silu":
        torch.nn.functional.silu(out, inplace=True)
    elif activation != "none":
        out.copy_(activated(out, activation))
