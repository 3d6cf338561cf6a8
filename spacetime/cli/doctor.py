"""`spacetime doctor`: what this machine can do, and what is used where it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils import _pytree as pytree

from spacetime import zoo
from spacetime._version import __version__
from spacetime.backends.cores import available_cores, can_pin
from spacetime.backends.cuda.gpu import unusable
from spacetime.backends.threads import confine
from spacetime.capture.selfcheck import problem
from spacetime.cli.checks import Check
from spacetime.cli.doctor_gpu import gpu_checks
from spacetime.kernels.vector.host import has_threads, host
from spacetime.runtime.runtime import Runtime
from spacetime.values import Value

T = TypeVar("T")

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
ORACLES = ("onnxruntime", "onnxscript", "transformers")
ON_GPU = "serving on the GPU"  # the name of a check
COLOURS = {"PASS": "green", "FAIL": "red", "MISSING": "yellow"}


@dataclass(frozen=True, slots=True)
class Diagnosis(Value):
    spacetime_version: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        return all(check.status != "FAIL" for check in self.checks)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Say what this machine can do. Exits with 1 when something that spacetime needs is broken."""
    diagnosis = Diagnosis(__version__, tuple(_checks()))
    if as_json:
        print(diagnosis.to_json())
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _checks() -> Iterator[Check]:
    yield _at_least("python", sys.version_info[:2], OLDEST_PYTHON, platform.python_version())
    major, minor = torch.__version__.split(".")[:2]
    yield _at_least("torch", (int(major), int(minor)), OLDEST_TORCH, torch.__version__)
    yield _cores()
    yield _pinning()
    yield _thread_counts()
    yield _library("MKL", torch.backends.mkl.is_available())
    yield _library("oneDNN", torch.backends.mkldnn.is_available())
    yield _vectors()
    yield from gpu_checks()
    yield _serving("serving", "cpu")
    if unusable() is None:
        yield _serving(ON_GPU, "cuda:0" if unusable("hip") else "hip:0")
    yield from map(_oracle, ORACLES)


def _at_least(name: str, found: tuple[int, int], oldest: tuple[int, int], full: str) -> Check:
    needed = ".".join(map(str, oldest))
    return Check(name, "PASS" if found >= oldest else "FAIL", f"{full}; {needed} or newer is needed")


def _cores() -> Check:
    available, present = len(available_cores()), os.cpu_count()
    return Check("cores", "PASS", f"{available} of {present} may be used: the CPU device has {available} units")


def _pinning() -> Check:
    core = available_cores()[0]
    if not can_pin():
        instead = "lanes run unpinned, on as many threads as they have units"
        return Check("pinning", "MISSING", "this system has no sched_setaffinity", instead)
    found = _in_confined_thread(core, lambda: os.sched_getaffinity(0))
    if found != {core}:
        return Check("pinning", "FAIL", f"a thread confined to core {core} may use {sorted(found)}")
    return Check("pinning", "PASS", "threads stay on the cores of their partition")


def _thread_counts() -> Check:
    """Lanes side by side need counts of their own: one lane's count must not change another's."""
    before = torch.get_num_threads()
    inside = _in_confined_thread(available_cores()[0], torch.get_num_threads)
    after = torch.get_num_threads()
    if inside != 1:
        return Check("thread-local counts", "FAIL", f"a thread confined to one core computes on {inside}")
    if before != after:
        reason = f"confining one thread changed another's count from {before} to {after}"
        return Check("thread-local counts", "MISSING", reason, "torch.set_num_threads, which all threads share")
    return Check("thread-local counts", "PASS", f"1 in a confined thread, {after} outside")


def _in_confined_thread(core: int, ask: Callable[[], T]) -> T:
    answers: list[T] = []

    def run() -> None:
        confine([core])
        answers.append(ask())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answers[0]


def _library(name: str, available: bool) -> Check:
    if available:
        return Check(name, "PASS", "torch was built with it")
    return Check(name, "MISSING", "torch was built without it", "torch's own kernels, which are slower")


def _vectors() -> Check:
    """The kernels that serve few rows of large weights where they lie (kernels/vector)."""
    on = host()
    if on is None:
        reason = "no fused multiply-add, or llvmlite is older than 0.45"
        return Check("vector kernels", "MISSING", reason, "oneDNN, which reorders plain weights at every call")
    threads = "on PyTorch's threads" if has_threads() else "on one thread each: PyTorch does not use GNU's OpenMP"
    return Check("vector kernels", "PASS", f"{on.lanes} floats at a time, {threads}")


def _serving(name: str, device: str) -> Check:
    """The whole way, once: two models, one batch, the plain modules' answers."""
    try:
        trouble = _trouble_serving(device)
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    if trouble is not None:
        return Check(name, "FAIL", trouble)
    return Check(name, "PASS", "two models were captured as one cohort and answered like the plain modules")


def _trouble_serving(device: str) -> str | None:
    where = "cpu" if device == "cpu" else "cuda"
    names = ("first", "second")
    modules = [zoo.build("mlp", seed).to(where) for seed in range(len(names))]
    args = tuple(tensor.to(where) for tensor in zoo.example("mlp"))
    with torch.no_grad():
        references = [pytree.tree_leaves(module(*args)) for module in modules]
    with Runtime(device) as runtime:
        tenants = [runtime.add(module, args, name) for module, name in zip(modules, names, strict=True)]
        answers = [future.result() for future in [tenant.submit(*args) for tenant in tenants]]
        explanation = runtime.explain()
    if explanation.opaque:
        return f"a model was not captured: {explanation.opaque[0].reason}"
    for answer, reference in zip(answers, references, strict=True):
        found = problem(pytree.tree_leaves(answer), reference)
        if found is not None:
            return found
    return None


def _oracle(package: str) -> Check:
    try:
        found = version(package) if importlib.util.find_spec(package) else None
    except PackageNotFoundError:
        found = None
    if found is None:
        return Check(package, "MISSING", "optional, not installed", "comparisons with it are left out")
    return Check(package, "PASS", f"{found}, for comparisons")


def _print(diagnosis: Diagnosis) -> None:
    table = Table(title=f"spacetime {diagnosis.spacetime_version}", title_justify="left")
    for heading in ("capability", "status", "reason", "used instead"):
        table.add_column(heading)
    for check in diagnosis.checks:
        colour = COLOURS[check.status]
        table.add_row(check.name, f"[{colour}]{check.status}[/{colour}]", check.reason, check.instead)
    console = Console()
    console.print(table)
    console.print(_verdict(diagnosis), highlight=False, markup=False, soft_wrap=True)


def _verdict(diagnosis: Diagnosis) -> str:
    """What it comes to: most of the table is about GPUs, which most machines do not have."""
    checks = {check.name: check for check in diagnosis.checks}
    broken = [name for name, check in checks.items() if check.status == "FAIL"]
    if broken:
        return f"Broken: {', '.join(broken)}. Spacetime does not work here as promised."
    if ON_GPU in checks:
        return "All that spacetime needs is there: it serves on the GPU and on the CPU."
    return f"All that spacetime needs is there: it serves on the CPU. No GPU can be used: {unusable()}."
