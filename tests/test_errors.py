"""Every error that spacetime raises on purpose has three parts: what failed, the facts, the next step."""

from __future__ import annotations

import ast
import builtins
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from spacetime import errors
from spacetime.errors import OptionError, SpacetimeError

ROOT = Path(__file__).parents[1]
SOURCES = [
    (path, ast.parse(path.read_text(encoding="utf-8")))
    for at in ("spacetime", "bench")
    for path in (ROOT / at).rglob("*.py")
]
PARTS = ("what", "facts", "next_step")

# What these raise is caught in the same file, and told as a part of another error.
CAUGHT_THERE = {"spacetime/profiler/store.py"}


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def kinds() -> set[str]:
    """SpacetimeError and all that are derived from it, in whatever file."""
    classes = [node for _, tree in SOURCES for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"SpacetimeError"}
    while more := {each.name for each in classes if found & {name_of(base) for base in each.bases}} - found:
        found |= more
    return found


def incomplete(tree: ast.AST, known: set[str]) -> Iterator[ast.Call]:
    """Errors that are made without all of their parts, or with an empty one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or name_of(node.func) not in known:
            continue
        given = dict(zip(PARTS, node.args, strict=False)) | {word.arg: word.value for word in node.keywords if word.arg}
        empty = [part for part in given.values() if isinstance(part, ast.Constant) and not part.value]
        passed_on = any(isinstance(part, ast.Starred) for part in node.args) or any(
            not word.arg for word in node.keywords
        )
        if empty or (set(PARTS) - given.keys() and not passed_on):
            yield node


def test_every_error_has_three_parts() -> None:
    known = kinds()
    assert {name for name, value in vars(errors).items() if isinstance(value, type)} <= known
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path, tree in SOURCES
        for call in incomplete(tree, known)
        if path.relative_to(ROOT).as_posix() not in CAUGHT_THERE
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "is_complete"),
    [
        ("OptionError('a', 'b', 'c')", True),
        ("errors.OptionError('a', next_step='c', facts=f'{b}')", True),
        ("OptionError(*parts)", True),
        ("OptionError('a', 'b')", False),
        ("OptionError('a', next_step='c')", False),
        ("OptionError('a', '', 'c')", False),
        ("ValueError('a')", True),
    ],
)
def test_the_reading_finds_what_is_missing(code: str, is_complete: bool) -> None:
    assert (not list(incomplete(ast.parse(code), kinds()))) == is_complete


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    documented = [line.split() for line in (errors.__doc__ or "").splitlines() if line.startswith("  ")]
    for name, base, *_ in documented:
        assert issubclass(getattr(errors, name), SpacetimeError)
        assert issubclass(getattr(errors, name), getattr(builtins, base.strip("()")))
    assert {name for name, *_ in documented} | {"SpacetimeError"} == {
        name for name, value in vars(errors).items() if isinstance(value, type)
    }


def test_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(OptionError("what", "facts", "next")))
    assert str(error) == "what\n  facts\n  next" and (error.what, error.facts, error.next_step) == (
        "what",
        "facts",
        "next",
    )
