"""What this machine is, as far as it may change a latency. Used by the profiler's sites and by modelled profiles.

What the libraries are is asked of torch, which is imported for it, if nobody knows it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from spacetime._version import __version__
from spacetime.backends.cores import available_cores
from spacetime.device import Device
from spacetime.profiler.records import UNCONFINED, Environment

# Set by a user, these change what torch's kernels do.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_NVIDIA_DRIVER, _AMD_DRIVER = Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version")

# How latencies of GPUs come about; another way makes other figures.
GPU_TIMING = "events on the device, launches queued ahead of it, an empty pair of events subtracted"


# How latencies in whole runs on a CPU come about.
CPU_TIMING = "the host's clock around every kernel, what reading it takes subtracted; the module's code on no rows"


def cpu_environment(libraries: Mapping[str, str] | None = None) -> Environment:
    """The cores that this process may use. The same process settings give the same environment.

    `libraries`: what `cpu_libraries` said in another process, under the conditions that decide it.
    """
    num_cores = len(available_cores())
    facts = cpu_libraries() if libraries is None else libraries
    return Environment(
        device=f"{cpu_model()}, {num_cores} cores",
        kind="cpu",
        num_units=num_cores,
        driver=f"{platform.system()} {platform.release()}",
        versions=tuple(sorted({**facts, **variables(), "timing": CPU_TIMING}.items())),
    )


def gpu_environment(device: Device, unconfined: str) -> Environment:
    """A GPU as a backend describes it; `unconfined` says why kernels run on all of it only, "" when they do not."""
    partitions = f"{device.num_atoms} atoms of {device.units_per_atom} units"
    facts = _gpu_libraries() | ({UNCONFINED: unconfined} if unconfined else {"partitions": partitions})
    return Environment(
        device=device.name,
        kind=device.kind,
        num_units=device.num_units,
        driver=gpu_driver(device.kind),
        versions=tuple(sorted((facts | {"timing": GPU_TIMING}).items())),
    )


def environment_of(device: Device, unconfined: str = "") -> Environment:
    """Of a backend's device on this machine; whatever is no GPU computes on the CPU."""
    return gpu_environment(device, unconfined) if device.kind in ("cuda", "hip") else cpu_environment()


def gpu_driver(kind: str) -> str:
    """As the kernel knows it: "nvidia 580.159.03"."""
    if kind == "hip":
        version = _AMD_DRIVER.read_text(encoding="ascii").strip() if _AMD_DRIVER.exists() else "of an unknown version"
        return f"amdgpu {version}"
    text = _NVIDIA_DRIVER.read_text(encoding="utf-8") if _NVIDIA_DRIVER.exists() else ""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]*)", text)
    return f"nvidia {found.group(1) if found else 'of an unknown version'}"


def modelled_environment(device: Device) -> Environment:
    """An analytic model of a device; another parameter of the device is another environment."""
    parameters = hashlib.sha256(device.to_json().encode()).hexdigest()[:8]
    return Environment(
        device=f"model:{device.name}",
        kind="model",
        num_units=device.num_units,
        driver=f"analytic model, parameters {parameters}",
        versions=(("spacetime", __version__),),
    )


def cpu_model() -> str:
    """Linux's name of the model; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int | None:
    """Of the largest cache in front of the memory; None where the system does not tell."""
    sizes = [_size_bytes(path.read_text(encoding="ascii")) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=None)


def _size_bytes(text: str) -> int:
    """
    >>> _size_bytes("480K"), _size_bytes("2M")
    (491520, 2097152)
    """
    number, unit = re.fullmatch(r"(\d+)([KMG]?)\s*", text).groups()  # type: ignore[union-attr]
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def cpu_libraries() -> dict[str, str]:
    """What torch computes with on the CPU."""
    import torch

    built = torch.__config__.show()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "float32 products": torch.get_float32_matmul_precision(),
        "oneDNN": _found(r"MKL-DNN v(\S+)", built) if torch.backends.mkldnn.enabled else "disabled",
        "MKL": _found(r"Math Kernel Library Version (\S+)", built),
        "OpenMP": _found(r"OpenMP (\d+)", built),
    }


def settings_are_default() -> bool:
    """Does torch compute as in a process that has just imported it?"""
    import torch

    enabled = torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
    return torch.get_float32_matmul_precision() == "highest" and enabled


def _gpu_libraries() -> dict[str, str]:
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "HIP": torch.version.hip or "none",
        "cuDNN": str(torch.backends.cudnn.version() or "none"),
        "float32 products": torch.get_float32_matmul_precision(),
        "float32 convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else "none"


def variables() -> dict[str, str]:
    """Of the process, those that change what kernels do."""
    return {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
