"""The layers of the package as a table, and a reading of every import that holds the sources to it.

Imports are parsed, never run: those inside functions and under TYPE_CHECKING count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spacetime"

# Bottom to top. A module imports from lower rows, and from its own package; neighbours in a row do not know each other.
LAYERS = (
    ("errors", "_version"),
    ("values", "arrivals", "perfetto"),
    ("device", "ir", "workload"),
    ("plan", "loadgen", "merged"),
    ("trace",),
    ("scheduler",),
    ("merging",),
    ("sim",),
    ("capture",),
    ("kernels",),
    ("backends",),
    ("profiler",),
    ("runtime",),
    ("api",),
    ("zoo",),
    ("spacetime",),  # the public namespace, spacetime/__init__.py
    ("cli",),
)

# The whole list of what these may import from the package, where the table alone would allow more.
MAY_IMPORT_ONLY = {"zoo": {"errors"}}

# What runs in the simulator and in tests without torch. A package stands for all of its modules.
WITHOUT_TORCH = (
    "errors",
    "values",
    "arrivals",
    "perfetto",
    "device",
    "ir",
    "workload",
    "loadgen",
    "plan",
    "merged",
    "trace",
    "scheduler",
    "merging",
    "sim",
    "backends.cores",
    "backends.null",
    "profiler.campaign",
    "profiler.conditions",
    "profiler.inside",
    "profiler.measure",
    "profiler.memory",
    "profiler.programs",
    "profiler.run",
    "profiler.store",
    "cli.known",
)

MAX_LINES = 400

LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}


@dataclass(frozen=True)
class Module:
    """One source file of the package under `root`; names are relative to the package: "scheduler.loop"."""

    root: Path
    path: Path

    @property
    def name(self) -> str:
        parts = self.path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """Its entry in the table."""
        return part_of(self.name)

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and absolute name of everything that is imported: "torch.nn", "spacetime.plan.Lane"."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = self.absolute(node.module or "", node.level)
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)

    def absolute(self, source: str, level: int) -> str:
        """`from ..plan import Lane` in scheduler/loop.py names "spacetime.plan"."""
        if level == 0:
            return source
        folder = self.path.relative_to(self.root.parent).parts[:-1]
        return ".".join((*folder[: len(folder) - level + 1], *filter(None, [source])))


def part_of(name: str) -> str:
    """The first component of a name relative to the package; "spacetime" for the package itself."""
    return name.partition(".")[0] or "spacetime"


def part_imported_by(name: str) -> str | None:
    """The table entry that an absolute name belongs to; None for another distribution."""
    first, _, rest = name.partition(".")
    if first != "spacetime":
        return None
    return part_of(rest) if part_of(rest) in LEVEL else "spacetime"


def violations(root: Path) -> list[str]:
    """Everything in the package at `root` that breaks a rule of this file, one line each."""
    modules = [Module(root, path) for path in sorted(root.rglob("*.py"))]
    return [f"{module.path.relative_to(root)}{problem}" for module in modules for problem in problems(module)]


def problems(module: Module) -> Iterator[str]:
    if module.part not in LEVEL:
        yield f": {module.part!r} is in no layer; give it a row in LAYERS"
        return
    if not ast.get_docstring(module.tree):
        yield ": no docstring; say what it is and who may import it"
    num_lines = len(module.text.splitlines())
    if num_lines > MAX_LINES:
        yield f": {num_lines} lines; split it, {MAX_LINES} is the limit"
    without_torch = any(f"{module.name}.".startswith(f"{entry}.") for entry in WITHOUT_TORCH)
    for line, name in module.imports():
        if without_torch and part_of(name) == "torch":
            yield f":{line}: {module.name} imports {name}; it must work without torch"
        target = part_imported_by(name)
        if target is not None and target != module.part and not may_import(module.part, target):
            yield f":{line}: {module.part} imports {target}, which is not below it"


def may_import(part: str, target: str) -> bool:
    if part in MAY_IMPORT_ONLY:
        return target in MAY_IMPORT_ONLY[part]
    return LEVEL[target] < LEVEL[part]


def test_the_package_keeps_its_layers() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


def test_the_table_names_every_part_once() -> None:
    assert len(LEVEL) == sum(map(len, LAYERS))
    assert {part_of(entry) for entry in WITHOUT_TORCH} | MAY_IMPORT_ONLY.keys() <= LEVEL.keys()


UPWARD = "which is not below it"
TORCH = "must work without torch"

PLANTED = {
    "upward": ("plan.py", "from spacetime.runtime import Runtime", "plan.py:2: plan imports runtime, " + UPWARD),
    "upward, whole module": ("plan.py", "import spacetime.runtime", "plan.py:2: plan imports runtime, " + UPWARD),
    "upward, module as a name": (
        "plan.py",
        "from spacetime import runtime",
        "plan.py:2: plan imports runtime, " + UPWARD,
    ),
    "upward, relative": (
        "scheduler/loop.py",
        "from ..runtime import Runtime",
        "scheduler/loop.py:2: scheduler imports runtime, " + UPWARD,
    ),
    "upward, relative in an __init__": (
        "scheduler/__init__.py",
        "from .. import runtime",
        "scheduler/__init__.py:2: scheduler imports runtime, " + UPWARD,
    ),
    "upward, for types only": (
        "plan.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spacetime.runtime import Runtime",
        "plan.py:4: plan imports runtime, " + UPWARD,
    ),
    "upward, inside a function": (
        "plan.py",
        "def late() -> None:\n    import spacetime.runtime",
        "plan.py:3: plan imports runtime, " + UPWARD,
    ),
    "a neighbour": ("ir.py", "from spacetime.device import Device", "ir.py:2: ir imports device, " + UPWARD),
    "the public namespace": ("plan.py", "import spacetime as st", "plan.py:2: plan imports spacetime, " + UPWARD),
    "a public name": ("plan.py", "from spacetime import Runtime", "plan.py:2: plan imports spacetime, " + UPWARD),
    "the zoo, from below": (
        "capture/trace.py",
        "from spacetime.zoo import mlp",
        "capture/trace.py:2: capture imports zoo, " + UPWARD,
    ),
    "by the zoo": ("zoo/mlp.py", "from spacetime.plan import Lane", "zoo/mlp.py:2: zoo imports plan, " + UPWARD),
    "torch in a value": ("ir.py", "import torch.nn as nn", "ir.py:2: ir imports torch.nn; it " + TORCH),
    "torch in a policy": (
        "scheduler/policies/krisp.py",
        "from torch import Tensor",
        "scheduler/policies/krisp.py:2: scheduler.policies.krisp imports torch.Tensor; it " + TORCH,
    ),
    "torch in the null backend": (
        "backends/null.py",
        "import torch",
        "backends/null.py:2: backends.null imports torch; it " + TORCH,
    ),
    "no layer": ("extra.py", "", "extra.py: 'extra' is in no layer; give it a row in LAYERS"),
    "too long": (
        "plan.py",
        "x = 1\n" * MAX_LINES,
        f"plan.py: {MAX_LINES + 1} lines; split it, {MAX_LINES} is the limit",
    ),
}


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small package that breaks no rule."""
    root = tmp_path / "spacetime"
    plant(root, "device.py", '"""Values."""\n')
    plant(root, "zoo/__init__.py", '"""Models."""\nimport torch\nfrom spacetime.errors import InputError\n')
    plant(root, "errors.py", '"""Errors."""\n')
    plant(root, "runtime.py", '"""On top."""\nfrom spacetime import device\nfrom .device import Device\nimport torch\n')
    plant(root, "backends/base.py", '"""Its own package and torch are allowed."""\nimport torch\nfrom . import cpu\n')
    plant(root, "backends/null_like.py", '"""Not the null backend."""\nimport torch\n')
    return root


def test_a_package_that_breaks_no_rule_passes(root: Path) -> None:
    assert violations(root) == []


@pytest.mark.parametrize(("name", "code", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_caught(root: Path, name: str, code: str, expected: str) -> None:
    plant(root, name, f'"""Planted."""\n{code}')
    assert violations(root) == [expected]


def test_a_missing_docstring_is_caught(root: Path) -> None:
    plant(root, "plan.py", "x = 1\n")
    assert violations(root) == ["plan.py: no docstring; say what it is and who may import it"]
