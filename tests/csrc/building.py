"""Compilers for the tests of csrc/. Tests skip where there is none; what is built lies in a temporary folder."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HERE = Path(__file__).parent


def build(source: Path, output: Path, *options: str) -> Path:
    """A shared library from one C++ file, with warnings as errors."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
    command = [compiler, *strict, *options, str(source), "-o", str(output), "-ldl"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return output


def compiles(text: str, folder: Path, *options: str) -> None:
    """The C++ text is correct; static_asserts in it are the test."""
    source = folder / "check.cpp"
    source.write_text(text, encoding="utf-8")
    build(source, folder / "check.so", *options)
