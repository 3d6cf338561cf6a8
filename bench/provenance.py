"""What a figure was measured on, and with what. Imported by the cases' driver and by readers of bench/results/."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

import spacetime
from spacetime.backends.cores import available_cores
from spacetime.profiler.environment import cpu_model
from spacetime.values import Value

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("numpy", "numba", "triton", "onnxruntime", "mlcommons-loadgen")  # beside torch: who else computes or drives


@dataclass(frozen=True, slots=True)
class Provenance(Value):
    device: str  # names the folder under bench/results/
    cpu: str
    num_cores: int
    driver: str
    system: str
    python: str
    torch: str
    spacetime: str
    commit: str
    dirty: bool  # the sources differ from the commit
    date_utc: str
    gpu: str = "none"  # unless the figure was taken on it
    versions: dict[str, str] = field(default_factory=dict)  # of other packages, as far as they are installed


def collect(device: str = "cpu") -> Provenance:
    """Of figures taken on this device, "cpu" or "cuda:N"."""
    cpu, num_cores = cpu_model(), len(available_cores())
    gpu = "none" if device == "cpu" else torch.cuda.get_device_name(device)
    commit, dirty = _commit()
    return Provenance(
        device=device_id(cpu, num_cores) if device == "cpu" else gpu_id(gpu),
        cpu=cpu,
        num_cores=num_cores,
        driver="none" if device == "cpu" else _driver(device),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        spacetime=spacetime.__version__,
        commit=commit,
        dirty=dirty,
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        gpu=gpu,
        versions=_versions() | ({} if device == "cpu" else {"cuda": str(torch.version.cuda)}),
    )


def device_id(cpu: str, num_cores: int) -> str:
    """A name for a folder.

    >>> device_id("Intel(R) Xeon(R) Platinum 8480+", 2)
    'cpu-2core-intel-xeon-platinum-8480'
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*", " ", cpu.lower()))
    return "-".join([f"cpu-{num_cores}core", *words])


def gpu_id(name: str) -> str:
    """A name for a folder.

    >>> gpu_id("NVIDIA H200")
    'gpu-nvidia-h200'
    """
    return "-".join(["gpu", *re.findall(r"[a-z0-9]+", name.lower())])


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _driver(device: str) -> str:
    """As nvidia-smi says it; "unknown" where there is none."""
    index = device.partition(":")[2] or "0"
    command = ["nvidia-smi", "-i", index, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _commit() -> tuple[str, bool]:
    """The commit and whether the tree differs from it; "unknown" outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "unknown", True
    return commit, bool(_git("status", "--porcelain", "--", ".", ":!bench/results"))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
