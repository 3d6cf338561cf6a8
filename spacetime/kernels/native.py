"""The compiled libraries of csrc/: where they lie, how they are called, what their errors become. No torch.

Both are optional. A library that is missing, or that finds no GPU, raises NativeError when it is used; importing
this module never fails. `python -m spacetime.kernels.native` builds the CUDA one in a checkout with nothing but
nvcc, for machines where pip cannot.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from spacetime.errors import SpacetimeError

PACKAGE = Path(__file__).parents[1]
FOLDER = "_native"  # beside the package's modules, where an install puts the libraries
VARIABLE = "SPACETIME_NATIVE"  # a folder to look into first
ARCHITECTURES = ("80", "90", "100")


class NativeError(SpacetimeError, RuntimeError):
    """A compiled library is missing, or a call into it failed."""


class Library:
    """One C library: functions return 0 or a code, and `error_function` then tells which call failed and why."""

    def __init__(self, name: str, error_function: str, signatures: dict[str, Sequence[Any]]) -> None:
        self.name = name
        self.path = find(name)
        self._library = ctypes.CDLL(str(self.path))
        self._error = getattr(self._library, error_function)
        self._error.restype = ctypes.c_char_p
        self._functions = {}
        for function, arguments in signatures.items():
            self._functions[function] = getattr(self._library, function)
            self._functions[function].argtypes = list(arguments)
            self._functions[function].restype = ctypes.c_int

    def call(self, function: str, *arguments: Any) -> None:
        """Raises NativeError naming the call and its code."""
        code = self._functions[function](*arguments)
        if code:
            text = (self._error() or b"").decode(errors="replace")
            facts = text or f"code {code}"
            raise NativeError(f"{function} failed in {self.name}", facts, "`spacetime doctor` says what works here")


def find(name: str) -> Path:
    """Where the library is; NativeError says where it was looked for."""
    file_name = f"lib{name}.so"
    looked_in = []
    for folder in _folders():
        if (folder / file_name).is_file():
            return folder / file_name
        looked_in.append(str(folder))
    raise NativeError(
        f"{file_name} is not installed",
        f"looked in {', '.join(looked_in)}",
        "install where nvcc or a C++ compiler is found, or run `python -m spacetime.kernels.native` in a checkout",
    )


def _folders() -> Iterator[Path]:
    if VARIABLE in os.environ:
        yield Path(os.environ[VARIABLE])
    yield PACKAGE / FOLDER
    yield from _installed_folders()


@cache
def _installed_folders() -> tuple[Path, ...]:
    """An editable install keeps the libraries apart from the sources; its record knows where."""
    try:
        recorded = files("spacetime-gpu") or []
    except PackageNotFoundError:
        return ()
    return tuple({Path(str(path.locate())).parent for path in recorded if path.parent.name == FOLDER})


def build(output: Path | None = None, architectures: Sequence[str] = ARCHITECTURES) -> Path:
    """Compile csrc/batched_gemm.cu with nvcc alone; where it went."""
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    source = PACKAGE.parent / "csrc" / "batched_gemm.cu"
    if compiler is None or not source.is_file():
        facts = f"nvcc: {compiler or 'not found'}, {source}: {'found' if source.is_file() else 'not found'}"
        raise NativeError("the CUDA library cannot be built", facts, "run it in a checkout, with nvcc on the PATH")
    target = output or PACKAGE / FOLDER / "libspacetime_cuda.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    options = ["-std=c++17", "-O3", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror,-fPIC", "--cudart=static"]
    command = [compiler, *options, *codes, "-shared", str(source), "-o", str(target), "-ldl"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NativeError("nvcc failed", ended.stderr.strip() or ended.stdout.strip(), " ".join(command))
    return target


if __name__ == "__main__":
    try:
        print(build())
    except NativeError as error:
        sys.exit(f"error: {error}")
