"""The doctor's questions about GPUs. Each answers on any machine: what there is, or what is missing and used instead.

Nothing here touches a device in this process except through torch's own queries; the census, which runs a kernel on
every partition, has a process of its own and a time-out.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from spacetime.backends.cuda.census import Survey
from spacetime.backends.cuda.driver import FIRST_WITH_GREEN_CONTEXTS, CudaDriver
from spacetime.backends.cuda.gpu import unusable
from spacetime.cli.checks import Check
from spacetime.errors import OptionError, SpacetimeError
from spacetime.kernels import batched_gemm, native
from spacetime.kernels import triton as triton_kernels
from spacetime.kernels.triton.products import num_measured
from spacetime.kernels.triton.table import shipped

DEVICES = Path("/dev")
CENSUS_LIMIT_S = 90.0
CENSUS = (sys.executable, "-m", "spacetime.backends.cuda.census")
CUBLAS = ("libcublas.so.13", "libcublas.so.12")
LEAST_CAPABILITY = (8, 0)  # what the Triton kernels are compiled and tested for

MEASURE_PRODUCTS = "python -m spacetime.kernels.triton.tune_products"

THE_CPU = "the CPU device"
PLAIN_STREAMS = "plain streams: lanes overlap on the whole device, nobody is confined"
PLAIN_TORCH = "slot kernels as plain torch calls"


def gpu_checks() -> Iterator[Check]:
    yield _torch("CUDA", "cuda", torch.version.cuda)
    yield _torch("HIP", "hip", torch.version.hip)
    yield _driver()
    yield _bindings()
    yield _green_contexts()
    yield _census()
    yield _capability()
    yield _triton()
    yield _cublas()
    yield _library()
    yield _products()
    yield _program("nvcc", "for building the compiled library", "the library stays as it is, built or not")
    yield _program("nvidia-cuda-mps-control", "for comparisons with MPS", "benches leave MPS out", name="MPS")


def _or_cpu(instead: str) -> str:
    """What is used instead on a GPU; without one, nothing of the kind is."""
    return instead if unusable() is None else THE_CPU


def _torch(name: str, kind: str, built_for: str | None) -> Check:
    if built_for is None:
        return Check(name, "MISSING", f"torch {torch.__version__} is built without {name}", THE_CPU)
    reason = unusable(kind)
    if reason is None:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check(name, "PASS", f"torch is built for {name} {built_for} and finds {', '.join(names)}")
    if kind == "cuda" and (DEVICES / "nvidia0").exists():
        return Check(name, "FAIL", f"{reason}, though {DEVICES / 'nvidia0'} is there: is the driver older than torch?")
    return Check(name, "MISSING", reason, THE_CPU)


def driver_version() -> int | None:
    """1000 * major + 10 * minor of the CUDA that the driver supports; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    return None if library.cuDriverGetVersion(ctypes.byref(number)) else number.value


def _driver() -> Check:
    found = driver_version()
    if found is None:
        return Check("CUDA driver", "MISSING", "libcuda.so.1 is not installed", THE_CPU)
    supported = f"it supports CUDA {found // 1000}.{found % 1000 // 10}"
    if found < FIRST_WITH_GREEN_CONTEXTS:
        return Check("CUDA driver", "MISSING", f"{supported}; partitions need 12.4", _or_cpu(PLAIN_STREAMS))
    return Check("CUDA driver", "PASS", supported)


def _bindings() -> Check:
    try:
        found = version("cuda-bindings") if find_spec("cuda") and find_spec("cuda.bindings") else None
    except PackageNotFoundError:
        found = None
    if found is None:
        return Check("cuda.bindings", "MISSING", "not installed; pip install cuda-python", _or_cpu(PLAIN_STREAMS))
    return Check("cuda.bindings", "PASS", found)


def _green_contexts() -> Check:
    name = "green contexts"
    if torch.version.hip:
        return Check(name, "MISSING", "they are NVIDIA's; this is a ROCm build of torch", PLAIN_STREAMS)
    try:
        driver = CudaDriver()
        groups = driver.split(driver.sm_resource(0), 8).groups
    except SpacetimeError as error:
        reason = f"{error.what}: {error.facts}" if error.facts else error.what
        return Check(name, "MISSING", reason, _or_cpu(PLAIN_STREAMS))
    return Check(name, "PASS", f"the SMs split into {len(groups)} groups of {driver.num_units(groups[0])}")


def _census(command: Sequence[str] = CENSUS, limit_s: float | None = None) -> Check:
    """Do partitions hold? Only where there is a GPU; a kernel that hangs must not take the doctor with it."""
    name, instead = "confinement", "partitions are taken at the driver's word"
    reason = unusable("cuda")
    if reason is not None:
        return Check(name, "MISSING", f"no census: {reason}", THE_CPU)
    limit_s = CENSUS_LIMIT_S if limit_s is None else limit_s
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, "FAIL", f"the census of SMs did not end within {limit_s:g} s")
    said = ended.stderr.strip().splitlines()
    if ended.returncode == 2:
        return Check(name, "MISSING", f"no census: {said[-1] if said else 'it does not say why'}", instead)
    try:
        survey = Survey.from_json(ended.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError, OptionError):
        return Check(name, "FAIL", f"the census of SMs ended with code {ended.returncode}: {' '.join(said[-2:])}")
    if survey.problems:
        more = f", and {len(survey.problems) - 1} more" if len(survey.problems) > 1 else ""
        return Check(name, "FAIL", survey.problems[0] + more)
    seen = f"{survey.num_partitions} partitions of {survey.num_atoms} atoms with {survey.units_per_atom} SMs"
    return Check(name, "PASS", f"kernels stay inside all of {seen}; the whole has {survey.whole_sms}")


def _capability() -> Check:
    name = "compute capability"
    if unusable("cuda") is not None:
        return Check(name, "MISSING", "there is no NVIDIA GPU that torch can use", THE_CPU)
    found = torch.cuda.get_device_capability()
    text, needed = (".".join(map(str, pair)) for pair in (found, LEAST_CAPABILITY))
    if found < LEAST_CAPABILITY:
        return Check(name, "MISSING", f"{text}; Triton kernels need {needed}", PLAIN_TORCH)
    return Check(name, "PASS", f"{text}; {needed} or newer is needed")


def _triton() -> Check:
    missing = triton_kernels.missing()
    if missing is not None:
        return Check("Triton", "MISSING", missing, _or_cpu(PLAIN_TORCH))
    return Check("Triton", "PASS", f"{version('triton')}; slot kernels are compiled when they are first used")


def _cublas() -> Check:
    for name in CUBLAS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return Check("cuBLAS", "PASS", f"{name} can be loaded")
    return Check("cuBLAS", "MISSING", f"none of {', '.join(CUBLAS)} can be loaded", _or_cpu("torch's own products"))


def _library() -> Check:
    """csrc/batched_gemm.cu, built by an install where nvcc is."""
    name, instead = "compiled library", _or_cpu("Triton kernels, or plain torch")
    try:
        path = native.find("spacetime_cuda")
    except native.NativeError as error:
        return Check(name, "MISSING", f"{error.what}; {error.next_step}", instead)
    missing = batched_gemm.missing()
    if missing is not None:
        return Check(name, "MISSING", f"{path} is there, but: {missing}", instead)
    return Check(name, "PASS", str(path))


def _products() -> Check:
    """What the choice between slot kernels and libraries can go by (kernels/triton/products.py)."""
    name = "measured products"
    reason = unusable()
    if reason is not None:
        return Check(name, "MISSING", f"measured on a GPU only: {reason}", THE_CPU)
    device = torch.cuda.get_device_name(0)
    try:
        number = num_measured(shipped(), device)
    except OptionError as error:
        return Check(name, "FAIL", f"{error.what}: {error.facts}")
    if not number:
        reason = f"none for {device}; {MEASURE_PRODUCTS} measures them"
        return Check(name, "MISSING", reason, "a slot kernel for every product, faster or not")
    return Check(name, "PASS", f"{number} for {device}; other shapes and mixes take slot kernels")


def _program(program: str, purpose: str, instead: str, name: str = "") -> Check:
    found = shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")
    if found is None:
        return Check(name or program, "MISSING", f"{program} is not on the PATH; it is only {purpose}", instead)
    return Check(name or program, "PASS", f"{found}, {purpose}")
