"""Stages on the machine: what is installed, what the card is, whether MPS can run, the project's own tests."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from bench.device.findings import INFO, MISSING, Notes

PACKAGES = (
    "torch triton cupy-cuda13x cuda-bindings cuda-core numpy numba onnx onnxruntime transformers torchvision "
    "pytest pytest-benchmark typer rich matplotlib hypothesis"
).split()
QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit,compute_mode,persistence_mode,mig.mode.current"
REPOSITORY = Path(__file__).parents[2]
# Libraries ask for entry points and attributes that may not be there, and go on: such answers are no bad accesses.
SANITIZER = ("--error-exitcode", "9", "--report-api-errors", "no")


def versions(notes: Notes) -> None:
    """The card and every version that matters."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    notes.note("packages", INFO, platform.python_version(), **found)
    notes.note("card", INFO, _run("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"))
    notes.note("nvcc", INFO, _run("nvcc", "--version").splitlines()[-1])
    import torch  # this stage must report the rest even where torch is broken

    properties = torch.cuda.get_device_properties(0)
    notes.check("torch sees the card", torch.cuda.is_available(), str(properties), cuda=torch.version.cuda)


def mps(notes: Notes) -> None:
    """Can an MPS daemon run here? Time of two processes with and without it. No setting of the card is changed."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        notes.note("MPS", MISSING, "nvidia-cuda-mps-control is not installed")
        return
    alone = _two_processes({}, 1)
    sliced = _two_processes({}, 2)
    notes.note(
        "time slicing",
        INFO,
        "one process, then two at once, each alone in its own context",
        alone_s=alone,
        both_s=sliced,
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in environment.values():
            Path(path).mkdir()
        said = Path(folder) / "said"  # no pipe: the daemon would hold it open
        try:
            with said.open("w") as output:
                command = [control, "-d"]
                code = subprocess.run(
                    command, env=os.environ | environment, stdout=output, stderr=output, timeout=20, check=False
                ).returncode
            if code:
                notes.note("MPS", MISSING, f"the daemon did not start: {said.read_text(errors='replace')[:300]}")
                return
            both = _two_processes(environment, 2)
            notes.note("MPS", INFO, "two processes under a daemon", both_s=both)
        finally:  # also after a time-out: the daemon has left this process's group, and nobody else would end it
            subprocess.run(
                [control],
                input="quit\n",
                env=os.environ | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=20,
                check=False,
            )


PROCESS = """
import time, torch
a = torch.randn(512, 512, device="cuda")
for _ in range(20): a @ a
torch.cuda.synchronize()
start = time.monotonic()
for _ in range(4000): a @ a
torch.cuda.synchronize()
print("took", time.monotonic() - start)
"""


def _two_processes(environment: dict[str, str], number: int) -> list[float]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    taken = []
    try:
        for process in running:
            output, errors = process.communicate(timeout=30)
            found = re.search(r"took ([\d.]+)", output)
            if found is None:
                raise RuntimeError(errors.strip()[-300:])
            taken.append(round(float(found.group(1)), 3))
    finally:
        for process in running:
            process.kill()
    return taken


def suite(notes: Notes) -> None:
    """The project's tests that make sense here, with this machine's own Python."""
    folders = ["tests/backends", "tests/scheduler", "tests/csrc", "tests/kernels"]
    options = ["-q", "--maxfail=5", "-m", "not slow", "-p", "no:cacheprovider"]
    if find_spec("xdist") is not None:  # one after another they take minutes
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    code, output = _ended([sys.executable, "-m", "pytest", *options, *folders], limit_s=90)
    tail = "\n".join(output.strip().splitlines()[-8:])[-900:]
    if code is None:
        notes.note("tests", MISSING, f"not done in 90 s; {output.count('FAILED')} failed until then; {tail}")
    else:
        notes.check("tests", code == 0, tail)


def sanitizer(notes: Notes) -> None:
    """The compiled kernels under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        notes.note("compute-sanitizer", MISSING, "not installed")
        return
    command = [tool, *SANITIZER, sys.executable, "-m", "bench.device", "--stage", "native"]
    code, output = _ended(command, limit_s=90)
    if code is None or refuses(output):
        reason = "not done in 90 s" if code is None else "compute-sanitizer cannot look at this device"
        notes.note("no bad memory access", MISSING, f"{reason}; {output[-600:]}")
        return
    summary = [line for line in output.splitlines() if "ERROR SUMMARY" in line or "Error" in line]
    notes.check("no bad memory access", code == 0, "; ".join(summary)[:500], code=code)


def refuses(output: str) -> bool:
    """Does compute-sanitizer say that it does not know the device? Under some hypervisors it does not."""
    return "Device not supported" in output


def _ended(command: list[str], limit_s: float) -> tuple[int | None, str]:
    """The exit status, None when its time was over, and what it had printed until then."""
    try:
        ended = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
        )
        return ended.returncode, ended.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"


__all__ = ["mps", "sanitizer", "suite", "versions"]
