"""What decides how a model is captured, beside the model: a digest of it, without torch. programs.py keys by it.

Versions do not tell everything: a checkout's sources change under one version, and torch is built in many ways under
one. So it is the sources of this package that count, what torch's build says of itself with its libraries, the
processor, and the variables that torch and this package read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from spacetime.profiler.environment import variables

# What torch, its compilers and this package read, beside the variables that change what kernels do.
_PREFIXES = ("TORCH", "PYTORCH", "SPACETIME", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "LD_")
_CPUINFO = Path("/proc/cpuinfo")
_PACKAGE = Path(__file__).parents[1]
_IMPORTERS = ("numpy", "onnx")


def conditions_digest() -> str | None:
    """Equal digests: equal files become equal programs. None: torch is not where it can be looked at."""
    torch = _torch()
    if torch is None:
        return None
    facts = {
        "sources": _sources(),
        "python": sys.version,
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch,
        "importers": {name: _version(name) for name in _IMPORTERS},
        "processor": _processor(),
        "variables": variables() | {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sources() -> str:
    """Of all modules of the package: which of them capture a program is nobody's list to keep."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE)}\0{len(source)}\0".encode())
        digest.update(source)
    return digest.hexdigest()


def _torch() -> dict[str, object] | None:
    """Its version with the commit, and its libraries, which are too large to be read: a build has others."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    try:
        written = (folder / "version.py").read_text(encoding="utf-8")
        libraries = sorted((folder / "lib").glob("*torch*.*"))
        return {
            "folder": str(folder),
            "version": written,
            "libraries": [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in libraries],
        }
    except OSError:  # zipped, or built in some other way
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """Its model and what it can do."""
    if not _CPUINFO.exists():
        return platform.processor()
    text = _CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    return "\n".join(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE))
