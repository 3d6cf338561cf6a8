"""Stage: every way of a product on this GPU, in one graph for any mix, and timed into the table that chooses by them.

The table is that of slot_tune, under $OUT: copy it to spacetime/kernels/triton/configs.json.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.device.findings import INFO, Notes
from bench.device.kernels import is_missing
from bench.device.restart import Case, each
from bench.device.tables import compile_all, table_path
from spacetime.kernels import batched_gemm
from spacetime.kernels.triton import products, ways
from spacetime.kernels.triton.choose import linear_plan
from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.products import BATCHED, GROUPED, WAYS, Decision, Shape, decide, decide_any
from spacetime.kernels.triton.slot_linear import Operands, reference
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.slot_linear import sample as sample_linear
from spacetime.kernels.triton.table import Table, load
from spacetime.kernels.triton.target import Target
from spacetime.kernels.triton.tune import TOLERANCE, GraphTimer
from spacetime.kernels.triton.tune_products import is_measured, tune_products, usual_shapes

COMPILE_S, TIME_S = 15, 58  # from the start: the end of compiling, and of everything
_END = "SPACETIME_DEVICE_END"  # on the monotonic clock: kept when the process starts again
SLOTS = 5
MIXES = ((4, 0, 2), (2, -1, 3, 3), (0, 1, 2, 3, 4, 0), (-1, -1))  # by row, whose weights it uses


def slot_products(notes: Notes) -> None:
    """One finding per way and type, then one per shape: the times of all ways, and what would be chosen."""
    if is_missing(notes, "products"):
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    is_first = _END not in os.environ
    end_s = float(os.environ.setdefault(_END, str(time.monotonic() + TIME_S)))
    target, path = Target.of(torch.device("cuda")), table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = load(path)
    wanted = [shape for shape in usual_shapes() if not is_measured(shape, target, known)]
    if is_first:
        plans = dict.fromkeys([linear_plan(shape.linear, target, known) for shape in wanted])
        jobs = [(plan.kernel.NAME, plan.shape, plan.config) for plan in plans]
        compile_all(notes, jobs, target, time.monotonic() + COMPILE_S)
    timer = GraphTimer(target, torch.cuda.get_device_properties(0).L2_cache_size)
    cases: list[Case] = [*any_mix_cases(target)]
    cases += [(name_of(shape), partial(_timed, shape, target, timer, path, end_s)) for shape in wanted]
    each(notes, "slot_products", cases, status=INFO)


def name_of(shape: Shape) -> str:
    linear = shape.linear
    epilogue = f"{' bias' if linear.bias else ''}{'' if linear.activation == 'none' else f' {linear.activation}'}"
    return f"{shape.slots} slots x {shape.rows_each} rows {linear.m}x{linear.n}x{linear.k} {linear.dtype}{epilogue}"


def _timed(shape: Shape, target: Target, timer: GraphTimer, path: Path, end_s: float) -> dict[str, Any]:
    said: list[str] = []
    tune_products([shape], target, timer, path, said.append, lambda: time.monotonic() < end_s)
    return {"said": [line.strip()[:160] for line in said], **chosen(shape, target, load(path))}


def chosen(shape: Shape, target: Target, table: Table) -> dict[str, str]:
    """What serves this mix, and any with as many rows, where all ways can be used."""

    def told(decision: Decision) -> str:
        return f"{decision.way} ({decision.reason or 'not measured'})"

    one, any_mix = decide(shape, WAYS, target, table), decide_any(shape.linear, WAYS, target, table)
    return {"mix": told(one), "any_mix": told(any_mix)}


# -- one graph for any mix ----------------------------------------------------------------------------------------


def any_mix_cases(target: Target) -> list[Case]:
    cases: list[Case] = []
    for way, dtype in ((GROUPED, "bf16"), (BATCHED, "fp32"), (BATCHED, "bf16"), (BATCHED, "fp16")):
        shape = Linear(6, 3, 136, 264, dtype, bias=True, residual=True, activation="gelu")
        cases.append((f"{way} in one graph for any mix, {dtype}", partial(_any_mix, way, shape, target)))
    return cases


def _any_mix(way: str, shape: Linear, target: Target) -> dict[str, Any]:
    """Captured with all rows idle, as the backend does it; then every mix is written into its tables and replayed."""
    reason = batched_gemm.missing() if way == BATCHED else products.refusal(way, shape, target, SLOTS)
    if reason is not None:
        return {"left_out": reason}
    operands = sample_linear(shape, "cuda", slots=SLOTS)
    assert operands.bias is not None
    table, of_bias = operands.weight.entries, torch.zeros_like(operands.weight.entries)
    operands = replace(operands, bias=Slotted(operands.bias.stack, of_bias))
    write(operands, (-1,) * shape.rows)
    stream, run = torch.cuda.Stream(), action(way, operands, shape.activation)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    worst = 0.0
    for mix in MIXES:
        write(operands, mix)
        of_bias.copy_(table.clamp_min(0))
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        worst = max(worst, deviation(shape, operands, mix))
    assert worst <= TOLERANCE[shape.dtype], f"deviates by {worst:.2e}"
    return {"worst": worst, "mixes": len(MIXES)}


def action(way: str, operands: Operands, activation: str) -> Callable[[], None]:
    """What a lane does, with the tables that the operands have at that time."""
    bias, entries = operands.bias, operands.weight.entries
    assert bias is not None

    def run() -> None:
        if way == GROUPED:
            rows = ways.ByEntry.of(entries.unsqueeze(0), operands.num_active)
            ways.grouped_mm(operands, activation, rows, 0, bias.entries)
        else:
            ways.cublas_batched(operands, activation, bias.entries)

    return run


def write(operands: Operands, mix: Sequence[int]) -> None:
    """The mix into the tables, garbage behind it; the output is poisoned."""
    entries = operands.weight.entries
    words = [*mix, *[1] * (entries.numel() - len(mix))]
    entries.copy_(torch.tensor(words, dtype=torch.int32))
    operands.num_active.fill_(len(mix))
    operands.out.fill_(float("nan"))


def deviation(shape: Linear, operands: Operands, mix: Sequence[int]) -> float:
    """Of the rows that count, in parts of the largest value."""
    live = [row for row, entry in enumerate(mix) if entry >= 0]
    if not live:
        return 0.0
    wanted = reference(shape, operands)[live]
    found = operands.out[live].double()
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    return float("inf") if math.isnan(worst) else worst


__all__ = ["slot_products"]
