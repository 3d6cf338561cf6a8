"""Stages on the Triton slot kernels: every case of the interpreter's tests on the real GPU, and under the sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.device.findings import MISSING, Notes
from bench.device.host import SANITIZER, refuses
from bench.device.restart import Case, each
from bench.device.shards import command_of, in_shards, is_shard, own_part
from bench.provenance import REPOSITORY
from spacetime.kernels.triton import missing
from spacetime.kernels.triton.target import Target

SHARDS = max(1, min(8, (os.cpu_count() or 1) // 2))
FEW = "SPACETIME_DEVICE_FEW"  # set: one case in four, for tools that are slow


def slot_kernels(notes: Notes) -> None:
    """Every kernel against float64: partial tiles, epilogues, idle rows, garbage. One finding each."""
    if is_missing(notes, "slot kernels"):
        return
    is_few = bool(os.environ.get(FEW))
    if not is_few and not is_shard():
        in_shards(notes, command_of("slot_kernels"), SHARDS)
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cases = _cases(("cuda", Target.of(torch.device("cuda"))))
    each(notes, "slot_kernels", cases[::4] if is_few else own_part(cases))


def slot_sanitizer(notes: Notes) -> None:
    """Some of the cases under compute-sanitizer: reads and writes out of bounds."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        notes.note("compute-sanitizer on slot kernels", MISSING, "not installed")
        return
    if is_missing(notes, "compute-sanitizer on slot kernels"):
        return
    # PyTorch's pool hands out parts of large blocks; without it every tensor has bounds of its own.
    environment = os.environ | {FEW: "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    command = [tool, *SANITIZER, "--print-limit", "10", sys.executable]
    command += ["-m", "bench.device", "--stage", "slot_kernels"]
    try:
        ended = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=55, check=False
        )
    except subprocess.TimeoutExpired as error:
        seen = error.stdout or b""
        text = seen.decode(errors="replace") if isinstance(seen, bytes) else seen
        notes.note(
            "no bad memory access", MISSING, f"not done in 55 s; {text.count('PASS')} cases passed", tail=text[-800:]
        )
        return
    if refuses(ended.stdout + ended.stderr):
        reason = f"compute-sanitizer cannot look at this device; {ended.stdout[-600:]}"
        notes.note("no bad memory access", MISSING, reason)
        return
    passed, failed = ended.stdout.count('"PASS"'), ended.stdout.count('"FAIL"')
    lines = [line for line in ended.stdout.splitlines() if line.startswith("=========")]
    facts = f"{passed} cases passed, {failed} failed; " + " | ".join(lines)[:1500]
    notes.check("no bad memory access", ended.returncode == 0 and passed > 0, facts, code=ended.returncode)


def is_missing(notes: Notes, name: str) -> bool:
    reason = missing()
    if reason is not None:
        notes.note(name, MISSING, reason)
    return reason is not None


def tests_module(name: str) -> Any:
    """A module of tests/, whatever else is called `tests` on this machine."""
    if "tests" not in sys.modules:
        package = types.ModuleType("tests")
        package.__path__ = [str(REPOSITORY / "tests")]
        sys.modules["tests"] = package
    return __import__(f"tests.{name}", fromlist=["_"])


def _cases(on: tuple[str, Target]) -> list[Case]:
    known = tests_module("kernels.triton.interpreted.cases")
    groups = {
        "linear": known.LINEAR,
        "gemv": known.GEMV,
        "conv": known.CONVOLUTION,
        "depthwise": known.DEPTHWISE,
        "layernorm": known.LAYERNORM,
    }
    found: list[Case] = [("entries of rows", partial(known.run_entries, on=on))]
    for group, cases in groups.items():
        found += [(f"{group} {_words(case)}", partial(_run, known.run, case, on)) for case in cases]
    found += [(f"embedding {dtype}", partial(known.run_embedding, dtype, on)) for dtype in ("fp32", "bf16")]
    for dtype, num_units, swapped in (("fp32", 1, True), ("fp32", 7, False), ("bf16", 3, True)):
        found.append((f"grouped {dtype} on {num_units}", partial(known.run_grouped, dtype, num_units, swapped, on)))
    return found + _defaults(on)


def _defaults(on: tuple[str, Target]) -> list[Case]:
    """The shapes that are compiled offline, with the config that they would be served with."""
    compiled = tests_module("kernels.triton.compiled_cases")
    return [
        (f"default config: {name}", partial(_verify, case.kernel, case.shape, on))
        for name, case in {**compiled.CORE, **compiled.MORE}.items()
        if case.kernel.NAME != "row_entries"
    ]


def _verify(kernel: Any, shape: Any, on: tuple[str, Target]) -> dict[str, Any]:
    from spacetime.kernels.triton.tune import deviation, prepared

    device, target = on
    config = kernel.default(shape, target)
    found = deviation(kernel, shape, config, prepared(kernel, shape, config, device), target)
    return {"worst": found, "config": str(config)}


def _run(run: Callable[..., None], case: Any, on: tuple[str, Target]) -> None:
    run(case, on)


def _words(case: Any) -> str:
    return f"{case[1]}".replace(" ", "")[:110]


__all__ = ["slot_kernels", "slot_sanitizer"]
