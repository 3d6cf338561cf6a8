"""Case `lone`: what a small tenant pays when it is the only one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from bench.cases import Scale
from bench.results import Figure, Measurement
from bench.sides import Side, plain, tenants
from bench.timing import interleaved_us

SMALL_MODELS = ("mlp", "gru_cell", "lstm_cell")
CALLS_PER_BLOCK = 11  # the first is not counted
OVERHEAD = Figure(
    "lone",
    "runtime above plain call",
    "us",
    "one tenant, one row, a call at a time, against an equal plain module on all cores; each in a process of its own, "
    f"in turns; differences of medians of {CALLS_PER_BLOCK - 1} calls",
    goal="<= 150",
)


def run(scale: Scale) -> Iterator[Measurement]:
    for model in SMALL_MODELS:
        with Side(plain, model, 1) as base, Side(tenants, model, 1, scale.num_calls, scale.warm_up_s) as tenant:
            base.require()
            tenant.require()
            sides = [partial(side.block_median_us, CALLS_PER_BLOCK) for side in (base, tenant)]
            plain_us, tenant_us = interleaved_us(sides, -(-scale.num_calls // (CALLS_PER_BLOCK - 1)))
        overheads_us = [above - below for above, below in zip(tenant_us, plain_us, strict=True)]
        yield OVERHEAD.of(model, overheads_us, f"plain call {median(plain_us):.0f} us")
