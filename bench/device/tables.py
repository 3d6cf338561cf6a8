"""Stage: the fastest configs of the issue's shapes on this GPU, as a table under $OUT. Offline tuning in a time budget.

Compiling is what takes long, so all candidates are compiled first, on all cores, into Triton's cache; then each is
checked and timed alone. The table is whole after every shape: copy it to spacetime/kernels/triton/configs.json.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.device.findings import INFO, Notes
from bench.device.kernels import is_missing
from bench.device.restart import broken, start_again
from bench.provenance import REPOSITORY
from spacetime.kernels.triton.choose import KERNELS
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.table import Table, key, load
from spacetime.kernels.triton.target import Target
from spacetime.kernels.triton.tune import GraphTimer, configs_of, tune, usual_shapes

COMPILE_S, TIME_S = 40, 85  # from the start: the end of compiling, and of everything
CANDIDATES = 20  # of a shape
_SPENT = "SPACETIME_DEVICE_SPENT"  # seconds, before the process started again
_LEFT_OUT = "SPACETIME_DEVICE_LEFT_OUT"  # shapes that broke the context
Job = tuple[str, Any, Any]  # (kernel, shape, config)


def table_path() -> Path:
    return Path(os.environ.get("OUT", REPOSITORY / "build" / "device")) / "configs.json"


def best_table() -> Table:
    """What has been tuned on this machine, if anything."""
    return load(table_path())


def slot_tune(notes: Notes) -> None:
    """Shapes in the order of the figures that the project promises; what is in the table already is left out."""
    if is_missing(notes, "tuning"):
        return
    start_s = time.monotonic() - float(os.environ.get(_SPENT, "0"))
    target, path = Target.of(torch.device("cuda")), table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    left_out = json.loads(os.environ.get(_LEFT_OUT, "[]"))
    known = load(path)
    cases = [(name, shape) for name, shape in wanted() if key(name, target.name, shape) not in known]
    cases = [(name, shape) for name, shape in cases if f"{name} {shape}" not in left_out]
    if not left_out:
        jobs: list[Job] = []
        for name, shape in cases:
            jobs += [(name, shape, config) for config in configs_of(KERNELS[name], shape, target, CANDIDATES)]
        compile_all(notes, jobs, target, start_s + COMPILE_S)
    timer = GraphTimer(target, torch.cuda.get_device_properties(0).L2_cache_size)
    for index, (name, shape) in enumerate(cases):
        if time.monotonic() - start_s > TIME_S:
            notes.note("no time left", INFO, f"{len(cases) - index} of {len(cases)} shapes are not tuned")
            break
        _tune(notes, (name, shape), target, timer, path, start_s + TIME_S)
        trouble = broken()
        if trouble is not None:
            notes.note("the context is broken", INFO, f"{trouble}; starting again without {name} {shape}")
            os.environ[_LEFT_OUT] = json.dumps([*left_out, f"{name} {shape}"])
            os.environ[_SPENT] = str(time.monotonic() - start_s)
            start_again("slot_tune", 0)
    notes.note("table", INFO, str(path), entries=len(load(path)))


def compile_all(notes: Notes, jobs: list[Job], target: Target, end_s: float) -> None:
    """As many as there is time for."""
    start_s = time.monotonic()
    compiled, failed = _compile(jobs, target, end_s)
    took_s = round(time.monotonic() - start_s, 1)
    notes.note("compiled", INFO, "; ".join(failed)[:600], configs=len(jobs), compiled=compiled, took_s=took_s)


def _tune(notes: Notes, case: tuple[str, Any], target: Target, timer: Any, path: Path, end_s: float) -> None:
    said: list[str] = []
    name, shape = case
    with notes.trying(f"{name} {shape}"):
        tune([case], target, timer, path, CANDIDATES, said.append, lambda: time.monotonic() < end_s)
        measured = load(path).get(key(name, target.name, shape))
        figures = {} if measured is None else {"us": round(measured.time_us, 2), "config": measured.config}
        problems = sorted({line.rpartition(": ")[2] for line in said if line.startswith("  ") and " us: " not in line})
        notes.note(f"{name} {shape}", INFO, "; ".join([said[0], *problems])[:500], **figures)


def wanted() -> list[tuple[str, Any]]:
    """The promised figures first, then the networks', then the rest."""
    promised: list[tuple[str, Any]] = []
    for m in (1, 8, 4, 2):
        shape = Linear(20, m, 4096, 4096, "bf16", bias=True)
        promised += [("slot_gemv", shape), ("slot_linear", shape)]
    for rows in (120, 20):
        for m, n, k in ((256, 128, 1152), (256, 256, 256)):
            exact = Linear(rows, m, n, k, "fp32")
            promised += [("slot_linear", exact), ("slot_linear", replace(exact, precision="tf32x3"))]
    return list(dict.fromkeys([*promised, *usual_shapes()]))


def _compile(jobs: list[Job], target: Target, end_s: float) -> tuple[int, list[str]]:
    """How many were compiled until then, and what some of the others said. Idle workers end with the pool."""
    compiled, failed = 0, set()
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    with get_context("spawn").Pool(workers) as pool:
        answers = pool.imap_unordered(_warm, [(*job, target) for job in jobs])
        for _ in jobs:
            try:
                problem = answers.next(timeout=max(0.1, end_s - time.monotonic()))
            except Exception as error:  # the time is over, or a worker died
                failed.add(f"ended early: {type(error).__name__}")
                break
            compiled += problem is None
            failed |= {problem} if problem is not None else set()
    return compiled, sorted(failed)[:5]


def _warm(job: tuple[str, Any, Any, Target]) -> str | None:
    """In a worker: the same compilation that the launch asks for, kept in Triton's cache on disk."""
    name, shape, config, target = job
    kernel = KERNELS[name]
    try:
        operands = kernel.sample(shape, "meta", slots=shape.rows, words=kernel.workspace_words(shape, config))
        kernel.launch(shape, config, operands, target).warm()
    except Exception as error:
        return f"{name}: {type(error).__name__}: {str(error)[:120]}"
    return None


__all__ = ["slot_tune"]
