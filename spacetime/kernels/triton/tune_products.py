"""Times every way of a product on this machine's GPU: python -m spacetime.kernels.triton.tune_products

Offline only: nothing imports this module. All ways of a shape go into the table, so that the choice (products.py) can
be explained; one that is wrong, or that the device refuses, is reported and out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spacetime.kernels import batched_gemm
from spacetime.kernels.triton import missing, products, slot_linear, ways
from spacetime.kernels.triton.choose import linear_plan
from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.products import BADDBMM, BATCHED, GROUPED, SLOT, Shape
from spacetime.kernels.triton.slot_linear import Operands
from spacetime.kernels.triton.table import SHIPPED, Measured, Table, key, load, save
from spacetime.kernels.triton.target import Target
from spacetime.kernels.triton.tune import METHOD, GraphTimer, tuned_with
from spacetime.values import Value, decode, encode

_CALLS = {BADDBMM: "torch.baddbmm", GROUPED: "torch._grouped_mm", BATCHED: "cublasGemmBatchedEx"}


@dataclass(frozen=True, slots=True)
class Config(Value):
    runs: str  # which kernel, or call of a library


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """What a launch is for slot kernels."""

    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way, in the form that tune.py times and compares. `table`: the configs of slot kernels."""

    name: str
    table: Table

    def default(self, shape: Shape, target: Target) -> Config:
        if self.name == SLOT:
            return Config(linear_plan(shape.linear, target, self.table).kernel.NAME)
        return Config(_CALLS[self.name])

    def refusal(self, shape: Shape, target: Target) -> str | None:
        if self.name == BATCHED:
            return batched_gemm.missing()
        return products.refusal(self.name, shape.linear, target, shape.slots)

    def workspace_words(self, shape: Shape, config: Config) -> int:
        return 0

    def sample(self, shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
        """Random operands of the mix, whatever `slots` says."""
        operands = slot_linear.sample(shape.linear, device, slots=shape.slots, seed=seed)
        entries = torch.arange(shape.slots, dtype=torch.int32).repeat_interleave(shape.rows_each).to(device)
        bias = operands.bias
        return replace(
            operands,
            weight=Slotted(operands.weight.stack, entries),
            bias=None if bias is None else Slotted(bias.stack, entries),
        )

    def launch(self, shape: Shape, config: Config, operands: Operands, target: Target) -> Any:
        if self.name == SLOT:
            plan, zeros = linear_plan(shape.linear, target, self.table), operands.num_active.new_zeros
            return plan.launch(operands, target, lambda words, _: zeros(words))
        activation, of_bias = shape.linear.activation, None if operands.bias is None else operands.bias.entries
        if self.name == BADDBMM:
            return Action(lambda: ways.baddbmm(operands, activation, 0, shape.slots))
        if self.name == BATCHED:
            return Action(lambda: ways.cublas_batched(operands, activation, of_bias))
        # A lane sorts its rows once for all layers, so that is not counted here.
        rows = ways.ByEntry.of(operands.weight.entries.unsqueeze(0), operands.num_active)
        return Action(lambda: ways.grouped_mm(operands, activation, rows, 0, of_bias))

    def reference(self, shape: Shape, operands: Operands) -> Tensor:
        return slot_linear.reference(shape.linear, operands)


def tune_products(
    shapes: Iterable[Shape],
    target: Target,
    timer: Callable[[Any, Any, Any], float],
    path: Path,
    report: Callable[[str], None] = print,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Measures all ways of these shapes that the table lacks, and saves it after each shape.

    A shape that was cut short is not kept: the ways that are missing would seem to be slower.
    """
    for shape in shapes:
        table, found = load(path), list[Measured]()
        for name in products.WAYS:
            if not goes_on():
                report(f"{shape}: no time left")
                return
            way = Way(name, table)
            reason = way.refusal(shape, target)
            if reason is not None:
                report(f"  {name}: {reason}")
                continue
            config = way.default(shape, target)
            try:
                time_us = timer(way, shape, config)
            except Exception as error:
                report(f"  {name}: {type(error).__name__}: {error}".splitlines()[0])
                continue
            report(f"  {name}: {time_us:.2f} us")
            found.append(Measured(name, target.name, encode(shape), encode(config), time_us, METHOD, tuned_with()))
        save(path, {**table, **{each.key: each for each in found}}.values())


def is_measured(shape: Shape, target: Target, table: Table) -> bool:
    return key(SLOT, target.name, shape) in table


def mixes(linear: slot_linear.Shape, rows: Sequence[int] = (4, 16, 64)) -> Iterator[Shape]:
    """The mixes that a layer is measured for: all rows of other slots, and a few rows for each slot."""
    for count in rows:
        of_count = replace(linear, rows=count)
        yield from (Shape(of_count, slots) for slots in dict.fromkeys((count, max(2, count // 4))))


def usual_shapes() -> list[Shape]:
    """The layers of the project's benchmarks in the mixes above: those of the promised figures first."""
    linear = slot_linear.Shape
    layers = [
        *(linear(1, m, 4096, 4096, "bf16", bias=True) for m in (1, 8)),
        *(linear(1, 256, n, k, "fp32") for n, k in ((128, 1152), (256, 256))),
        linear(1, 1, 512, 512, "fp32", bias=True),
        *(linear(1, 128, n, k, "bf16", bias=True) for n, k in ((768, 768), (768, 3072))),
        linear(1, 128, 3072, 768, "bf16", bias=True, activation="gelu"),
    ]
    return [shape for layer in layers for shape in mixes(layer)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m spacetime.kernels.triton.tune_products", description=__doc__)
    parser.add_argument("--table", type=Path, default=SHIPPED, help="where to write (default: the shipped table)")
    parser.add_argument("--shape", help='a descriptor as JSON: {"linear": {"rows": 16, "m": 1, ...}, "slots": 16}')
    given = parser.parse_args(arguments)
    shapes = [decode(Shape, json.loads(given.shape))] if given.shape else usual_shapes()
    reason = missing()
    if reason:
        print(f"tuning needs a GPU and triton\n  {reason}", file=sys.stderr)
        return 1
    target = Target.of(torch.device("cuda"))
    timer = GraphTimer(target, torch.cuda.get_device_properties(0).L2_cache_size)
    tune_products(shapes, target, timer, given.table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
