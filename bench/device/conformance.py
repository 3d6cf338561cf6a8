"""Stages on the backend as a whole: the conformance suite on the real device, and models served by a runtime on it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import spacetime as st
from bench.device.findings import INFO, MISSING, Notes
from bench.device.kernels import tests_module
from spacetime import zoo
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.capture.selfcheck import magnitude, problem

REPOSITORY = Path(__file__).parents[2]
REAL = "real GPU"  # what the suite calls the device among its backends
MODELS = ("mlp", "resnet18", "bert")
ROWS = (1, 3, 2)  # of three tenants
ROUNDS = 40  # of one mix: a policy that is still trying sizes comes back to each often enough for a graph
PATIENCE_S = 30


def conformance(notes: Notes) -> None:
    """What every backend promises, on the real one: the same tests as on the CPU and on the fake GPU."""
    try:
        import pytest  # an image of a GPU machine need not have it
    except ImportError as error:
        notes.note("conformance suite", MISSING, str(error))
        return
    tests_module("backends.conformance")  # or somebody else's `tests` might be found first
    listener = _Listener(notes)
    arguments = ["-q", "-p", "no:cacheprovider", "-k", f"{REAL.split(maxsplit=1)[0]} and {REAL.split()[1]}"]
    code = pytest.main([*arguments, str(REPOSITORY / "tests/backends/test_conformance.py")], plugins=[listener])
    counts = dict(listener.counts)
    notes.check("conformance suite", code == 0 and counts.get("passed", 0) > 0, f"pytest ended with {code}", **counts)


class _Listener:
    """A plugin of pytest: what fails is told at once, so a test that kills the context does not hide it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self._notes.check(f"{report.nodeid.partition('::')[2]} ({report.when})", False, str(report.longrepr)[-600:])


def serving(notes: Notes) -> None:
    """Models of the zoo under the default policy on the real device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # torch allows it; the numerics contract does not
    for name in MODELS:
        with notes.trying(name):
            serve(notes, name, CudaBackend(0))


def serve(notes: Notes, name: str, backend: CudaBackend) -> None:
    """Three tenants, ragged rows, one leaves and one comes, then one mix again and again; every answer is compared."""
    where = backend.torch_device
    modules = [zoo.build(name, seed).to(where) for seed in range(4)]
    inputs = [tuple(tensor.to(where) for tensor in zoo.example(name, rows, rows)) for rows in ROWS]
    examples = tuple(tensor.to(where) for tensor in zoo.example(name))
    with st.Runtime(backend) as runtime:
        start_s = time.perf_counter()
        tenants = [runtime.add(module, examples, f"t{index}") for index, module in enumerate(modules[:3])]
        add_ms = (time.perf_counter() - start_s) * 1e3 / 3
        wrong = _round(tenants, modules[:3], inputs)
        runtime.remove("t1")
        tenants[1], modules[1] = runtime.add(modules[3], examples, "t3"), modules[3]
        latencies_us = []
        for _ in range(ROUNDS):
            start_s = time.perf_counter()
            wrong += _round(tenants, modules[:3], inputs)
            latencies_us.append((time.perf_counter() - start_s) * 1e6)
        lone_us = []
        for _ in range(ROUNDS):
            start_s = time.perf_counter()
            tenants[0](*inputs[0])
            lone_us.append((time.perf_counter() - start_s) * 1e6)
        backend.settle()
        explanation, graphs, granted = runtime.explain(), backend.graphs.report(), backend.granted()
    notes.check(f"{name}: answers are those of the plain modules", not wrong, "; ".join(wrong[:3]), wrong=len(wrong))
    opaque = [report.reason for report in explanation.opaque]
    notes.check(f"{name}: tenants share launches", not opaque, "; ".join(opaque)[:500])
    if graphs.refused:
        notes.note(f"{name}: lanes that stay eager", INFO, "; ".join(graphs.refused)[:500])
    notes.check(f"{name}: repeated mixes are replayed", graphs.replays > 0, backend.unconfined, **_counts(graphs))
    notes.note(
        f"{name}: times",
        INFO,
        "wall time of a caller; compared rounds include the comparison",
        add_ms=round(add_ms, 1),
        round_us=round(statistics.median(latencies_us[ROUNDS // 2 :])),
        lone_us=round(statistics.median(lone_us[ROUNDS // 2 :])),
        partitions={f"{g.planned_units} units, got {g.units}": g.lanes for g in granted[:12]},
        resident_mb=round(explanation.memory.resident_bytes / 1e6, 1),
        reserve_mb=round(explanation.memory.reserve_bytes / 1e6, 1),
    )


def _round(tenants: Sequence[Any], modules: Sequence[nn.Module], inputs: Sequence[tuple[Tensor, ...]]) -> list[str]:
    """One request of each tenant at the same time; what is wrong with the answers."""
    futures = [tenant.submit(*args) for tenant, args in zip(tenants, inputs, strict=True)]
    found = []
    for future, module, args in zip(futures, modules, inputs, strict=True):
        answer = pytree.tree_leaves(future.result(PATIENCE_S))
        with torch.no_grad():
            expected = pytree.tree_leaves(module(*args))
        trouble = problem(answer, expected, [magnitude(leaf) for leaf in expected])
        if trouble is not None:
            found.append(trouble)
    return found


def _counts(graphs: Any) -> dict[str, int]:
    return {name: getattr(graphs, name) for name in ("ready", "captured", "dropped", "replays", "eager", "num_bytes")}


__all__ = ["conformance", "serving"]
