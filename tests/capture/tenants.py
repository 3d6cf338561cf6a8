"""What the tests of capture/, kernels/ and backends/ share: captures made once, and tenants of one architecture.

Exporting is the slow part, so every member of the zoo is captured once per run of the suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.compiler import compile_program
from spacetime.capture.cohort import Cohort
from spacetime.capture.export import export
from spacetime.capture.program import Captured, build_program, storage_key
from spacetime.capture.recorder import owned_tensors
from spacetime.capture.rows import prove
from spacetime.capture.selfcheck import deviation, magnitude
from spacetime.kernels import RowMap
from spacetime.zoo import build, example

Inputs = tuple[Tensor, ...]


def capture(module: nn.Module, inputs: tuple[Any, ...]) -> Captured:
    """Export, proof and program; `Unfusible` where there is none."""
    exported = export(module, inputs)
    return build_program(exported, prove(exported))


@cache
def zoo_capture(name: str) -> Captured:
    return capture(build(name), example(name))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def weights_of(captured: Captured, module: nn.Module) -> list[tuple[Tensor, ...]]:
    """The tensors of a module in the order of the program, as `Cohort.join` takes them."""
    named, owned = named_tensors(module), owned_tensors(module)
    return [() if weight.is_constant else owned[storage_key(named[weight.name])] for weight in captured.weights]


def leaves_of(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        leaves: list[Tensor] = pytree.tree_leaves(module(*inputs))
    return leaves


class Tenants:
    """Modules of one architecture in a cohort; tenant i is called "i" and has slot i."""

    def __init__(self, captured: Captured, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.cohort = Cohort(captured)
        for index, module in enumerate(modules):
            self.cohort.join(str(index), weights_of(captured, module))
        self._run = compile_program(self.cohort.fused, self.cohort.layers).run

    def fused(self, slots: Sequence[int], inputs: Sequence[Inputs]) -> list[list[Any]]:
        """One batch with the rows of these tenants in this order; the flat outputs of each."""
        counts = [tensors[0].shape[0] for tensors in inputs]
        batch = [torch.cat(column) for column in zip(*inputs, strict=True)]
        with torch.no_grad():
            outputs = self._run(RowMap(tuple(slots), tuple(counts)), *batch)
        columns = [
            [output] * len(counts) if row_dim is None else output.split(counts, row_dim)
            for output, row_dim in zip(outputs, self.cohort.fused.output_row_dims, strict=True)
        ]
        return [list(leaves) for leaves in zip(*columns, strict=True)]

    def deviation(self, slots: Sequence[int], inputs: Sequence[Inputs], usual: Inputs) -> float:
        """The largest deviation of the fused results from those of the plain modules.

        `usual`: rows enough to tell how large each module's outputs are; a single row may cancel to nearly 0.
        """
        plain = [leaves_of(self.modules[slot], own) for slot, own in zip(slots, inputs, strict=True)]
        scales = [[magnitude(leaf) for leaf in leaves_of(self.modules[slot], usual)] for slot in slots]
        return largest_deviation(self.fused(slots, inputs), plain, scales)


def largest_deviation(
    fused: Sequence[Sequence[Any]], plain: Sequence[Sequence[Any]], scales: Sequence[Sequence[float]] | None = None
) -> float:
    scales = scales or [[0.0] * len(leaves) for leaves in plain]
    return max(
        deviation(result, reference, scale)
        for results, references, sizes in zip(fused, plain, scales, strict=True)
        for result, reference, scale in zip(results, references, sizes, strict=True)
        if isinstance(reference, Tensor)
    )


def lies_in(tensor: Tensor, stack: Tensor) -> bool:
    """Is it a view of the stack's memory, whatever storage it says it has?"""
    memory = stack.untyped_storage()
    return memory.data_ptr() <= tensor.data_ptr() < memory.data_ptr() + memory.nbytes()
