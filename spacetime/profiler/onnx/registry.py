"""The table of operations and how one node is run. Used by profiler/onnx/ only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from spacetime.profiler.onnx.graph import Node, Numbers, Operator, Unsupported, Value

Run = Callable[..., Any]

INTERNAL = "spacetime"  # the domain of what rewrites put in: operations of torch that ONNX has no single node for

_OPERATORS: dict[tuple[str, str], Operator] = {}
_ON_NUMBERS: dict[str, Run] = {}
_FAMILIES = "elementwise reduction shapes indexing linear convolution resize pooling norms recurrent numbers".split()


def op(
    name: str,
    *versions: int,
    plain: Iterable[int] = (),
    scalars: Iterable[int] = (),
    either: Iterable[int] = (),
    makes: bool = False,
    domain: str = "",
) -> Callable[[Run], Run]:
    """Register `run(node, *inputs)` for these versions of an ONNX operation; see `Operator`."""

    def register(run: Run) -> Run:
        assert (domain, name) not in _OPERATORS, name
        positions = (frozenset(plain), frozenset(scalars), frozenset(either))
        _OPERATORS[domain, name] = Operator(run, frozenset(versions), *positions, makes)
        return run

    return register


def on_numbers(*names: str) -> Callable[[Run], Run]:
    """Register what an operation does where all of its inputs are numbers; it may answer None: not for these."""

    def register(run: Run) -> Run:
        _ON_NUMBERS.update(dict.fromkeys(names, run))
        return run

    return register


@cache
def _load() -> None:
    for family in _FAMILIES:
        import_module(f"spacetime.profiler.onnx.operators.{family}")


def find(node: Node) -> Operator | None:
    """The operator of a node; None where the operation, or this version of it, is unknown."""
    _load()
    operator = _OPERATORS.get((node.domain, node.op))
    known = operator is not None and (node.domain == INTERNAL or node.version in operator.versions)
    return operator if known else None


def known_operations() -> dict[str, frozenset[int]]:
    """Every ONNX operation that can be imported, with the versions of its definition."""
    _load()
    return {name: operator.versions for (domain, name), operator in sorted(_OPERATORS.items()) if domain != INTERNAL}


def evaluate(
    node: Node,
    args: Sequence[Value | None],
    device: torch.device | None = None,
    as_tensors: bool = False,
) -> tuple[Value, ...]:
    """Run one node. The results come in the order of its outputs; `as_tensors`: with the precision of tensors."""
    present = [arg for arg in args if arg is not None]
    if not as_tensors and node.op in _ON_NUMBERS and present and all(isinstance(arg, Numbers) for arg in present):
        result = _ON_NUMBERS[node.op](node, *args)
        if result is not None:
            return _as_tuple(result)
    operator = find(node)
    assert operator is not None, node
    device = next((arg.device for arg in present if isinstance(arg, Tensor)), device)
    has_tensor = any(isinstance(arg, Tensor) and index not in operator.plain for index, arg in enumerate(args))
    inputs = [_prepare(operator, index, arg, device, has_tensor) for index, arg in enumerate(args)]
    result = operator.run(node, *inputs, device=device) if operator.makes else operator.run(node, *inputs)
    return _as_tuple(result)


def _prepare(operator: Operator, index: int, arg: Value | None, device: torch.device | None, has_tensor: bool) -> Any:
    if index in operator.plain:
        if isinstance(arg, Tensor):
            raise Unsupported(f"input {index} depends on the values of the inputs; it must be known, or a shape")
        return arg
    if not isinstance(arg, Numbers) or index in operator.either:
        return arg
    if index in operator.scalars and arg.is_scalar and arg.are_known and has_tensor:
        return arg.scalar()
    return arg.tensor(device)


def _as_tuple(result: Any) -> tuple[Value, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
