"""What a figure was measured on, and with what. Imported by the cases' driver and by readers of bench/results/."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import spacetime
from spacetime.backends.threads import available_cores
from spacetime.values import Value

REPOSITORY = Path(__file__).parents[1]


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


def collect() -> Provenance:
    cpu, num_cores = cpu_model(), len(available_cores())
    commit, dirty = _commit()
    return Provenance(
        device=device_id(cpu, num_cores),
        cpu=cpu,
        num_cores=num_cores,
        driver="none",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        spacetime=spacetime.__version__,
        commit=commit,
        dirty=dirty,
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def device_id(cpu: str, num_cores: int) -> str:
    """A name for a folder.

    >>> device_id("Intel(R) Xeon(R) Platinum 8480+", 2)
    'cpu-2core-intel-xeon-platinum-8480'
    """
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*", " ", cpu.lower()))
    return "-".join([f"cpu-{num_cores}core", *words])


def cpu_model() -> str:
    """Linux's name of the model; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


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
