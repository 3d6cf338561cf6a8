"""Case `add`: what tenants cost when they join: time, and memory beside their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from bench.cases import Scale, modules
from bench.provenance import REPOSITORY
from bench.results import Figure, Measurement
from bench.timing import duration_us
from spacetime import Runtime, zoo

WARM_UP_MODEL = "tied_lm"  # loads torch.export, which is nobody's cost in particular
FIRST = Figure("add", "first tenant", "ms", "add() in a fresh runtime; torch.export already loaded")
LATER = Figure(
    "add",
    "later over first tenant",
    "ratio",
    "median add() of the later tenants of a cohort over the first one's, in one runtime",
    goal="<= 0.2",
)
MEMORY_METHOD = (
    "a fresh process, modules built; their bytes and the growth of the resident set since before add() (malloc_trim "
    "before each look) over the bytes of distinct weights; once all are added, and after 20 rounds of one row each"
)
RESIDENT = {
    moment: Figure("add", f"resident memory over weights, {moment}", "ratio", MEMORY_METHOD, goal="<= 1.15")
    for moment in ("added", "served")
}
ACCOUNTED = Figure(
    "add",
    "slab bytes over weights",
    "ratio",
    "bytes in use in the slabs, as explain() says, over the bytes of distinct weights",
    goal="<= 1.15",
)


def run(scale: Scale) -> Iterator[Measurement]:
    _add_all(WARM_UP_MODEL, 1)
    for model in scale.models:
        runs = [_add_all(model, scale.num_tenants) for _ in range(scale.num_repeats)]
        yield FIRST.of(model, [first / 1e3 for first, *_ in runs])
        yield LATER.of(model, [median(later) / first for first, *later in runs], f"{scale.num_tenants} tenants")
    for model in scale.memory_models:
        yield from memory(model, scale.num_tenants, shared=False)
        yield from memory(model, scale.num_tenants, shared=True)


def _add_all(model: str, count: int) -> list[float]:
    with Runtime() as runtime:
        return [
            duration_us(lambda i=i, m=m: runtime.add(m, zoo.example(model), f"{model}/{i}"))  # type: ignore[misc]
            for i, m in enumerate(modules(model, count))
        ]


def memory(model: str, count: int, *, shared: bool) -> Iterator[Measurement]:
    """In a process of its own: this one's allocator remembers what came before."""
    subject = f"{model}, shared backbone" if shared else model
    command = [sys.executable, "-m", "bench.memory", model, str(count), *(["--shared"] if shared else [])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        yield from (figure.unavailable(subject, why) for figure in (*RESIDENT.values(), ACCOUNTED))
        return
    found = json.loads(done.stdout)
    distinct, plain, slabs = (found[key] for key in ("distinct_bytes", "module_bytes", "slab_bytes"))
    note = f"{count} tenants, {distinct / 1e6:.1f} MB of distinct weights"
    for moment, figure in RESIDENT.items():
        growth = found[f"growth_{moment}_bytes"]
        yield figure.of(subject, [(plain + growth) / distinct], f"{note}, growth {growth / 1e6:+.1f} MB")
    yield ACCOUNTED.of(subject, [slabs / distinct], f"{note}; {found['num_opaque']} opaque")
