"""torch.export with dynamic rows, normalised: the one place that knows torch.export. Used by capture/ only.

`export` answers with an `Exported`: a functional graph of ATen calls whose placeholders are sorted into
user inputs and weights. A module that cannot be expressed so raises `Unfusible` with the reason; it will
run as an opaque lane.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from spacetime.capture.decompositions import OURS
from spacetime.capture.expand import NotExpandable, expand
from spacetime.capture.simplify import unmerge_linears

MAX_ROWS = 65_536
MOST_SHAPES = 4096  # of operations, that torch may remember: a small export meets 200

# Everything else stays at the level of nn.functional: fewer kernels, and the eager ones.
DECOMPOSED = frozenset(
    """lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell einsum tensordot cosine_similarity
    repeat_interleave""".split()
)

_log = logging.getLogger("spacetime")


class Unfusible(Exception):
    """Why a module cannot share launches. Not an error: the module runs whole, in a lane of its own."""


@dataclass(frozen=True)
class Weight:
    """A parameter, buffer or constant of the module, by the storage that holds it."""

    name: str
    tensor: Tensor
    is_constant: bool  # created by the code, not registered on the module: equal for every member of a cohort


@dataclass(frozen=True)
class Exported:
    graph: fx.Graph
    rows: Any  # the sympy symbol of the number of rows
    inputs: tuple[fx.Node, ...]
    weights: dict[fx.Node, Weight]
    outputs: tuple[Any, ...]  # fx nodes, or constants
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


def export(module: nn.Module, example: tuple[Any, ...]) -> Exported:
    """Trace `module` with a symbolic number of rows."""
    leaves, in_spec = pytree.tree_flatten(example)
    _check_inputs(leaves)
    args = pytree.tree_unflatten([at_least_two_rows(leaf) for leaf in leaves], in_spec)
    rows = Dim("rows", min=1, max=MAX_ROWS)
    try:
        dynamic = pytree.tree_map(lambda _: {0: rows}, _by_parameter(module, args))
        with torch.no_grad(), _quiet(), _traceless():
            program = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
            try:
                expand(program.graph, _decompositions())
            except NotExpandable as why:
                _log.debug("the whole graph is decomposed, which takes longer: %s", why)
                program = program.run_decompositions(_decompositions())
    except Exception as error:
        raise Unfusible(_unknown_result(error, module) or _refusal(error)) from error
    return _normalise(program, in_spec)


def _by_parameter(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """As torch.export sees arguments: those of `forward(self, *xs)` are one, a tuple."""
    return dict(inspect.signature(module.forward).bind(*args).arguments)


def at_least_two_rows(tensor: Tensor) -> Tensor:
    """Tracing with a single row would make the row count a constant."""
    return tensor if tensor.shape[0] >= 2 else torch.cat([tensor, tensor])


def _check_inputs(leaves: list[Any]) -> None:
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise Unfusible(f"input {index} is a {type(leaf).__name__}, not a tensor")
        if leaf.ndim == 0:
            raise Unfusible(f"input {index} has no row dimension")
    if len({leaf.shape[0] for leaf in leaves}) != 1:
        raise Unfusible(f"inputs disagree on the number of rows: {[tuple(leaf.shape) for leaf in leaves]}")


@cache
def _decompositions() -> dict[Any, Any]:
    table = default_decompositions()
    operators: list[Any] = list(table)
    return {op: table[op] for op in operators if op._schema.name.removeprefix("aten::") in DECOMPOSED} | OURS


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns about its own internals; what concerns the user comes as an exception."""
    # Of refusals, too: they are reasons here, and raised.
    loggers = [logging.getLogger("torch.export"), logging.getLogger("torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    tracing = _tracing()
    try:
        tracing["print"] = lambda *_, **__: None  # the graph so far, three times over, to stderr
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tracing.pop("print", None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tracing() -> dict[str, Any]:
    """What the module has that traces; torch imports it with the first export only."""
    try:
        return vars(importlib.import_module("torch.export._trace"))
    except ImportError:  # another version of torch keeps it elsewhere
        return {}


def _unknown_result(error: Exception, module: nn.Module) -> str | None:
    """For results of types that torch cannot look into: which it is, and what its owner can do."""
    found = re.search(r"Found <class '([\w.]+)'> in output", str(error))
    if found is None:
        return None
    kind = found[1].rpartition(".")[2]
    configs = [getattr(part, "config", None) for part in module.modules()]  # the model may be inside of another module
    if "Cache" in kind and any(getattr(config, "use_cache", False) for config in configs):
        return f"its result holds a {kind}; set config.use_cache = False where nobody needs it"
    known = "register it, a dataclass by torch.export.register_dataclass"
    return f"its result holds a {kind}, which torch.export does not know; {known}"


def _refusal(error: Exception) -> str:
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", str(error))
    if fixed is not None:  # nothing else was to vary
        return f"the code fixes the number of rows to {fixed[1]}"
    if "requires_grad=True on inference tensor" in str(error):
        return "its weights were made under torch.inference_mode(), and cannot be traced; torch.no_grad() does as well"
    return f"torch.export refused the module: {_first_line(error)}"


@contextmanager
def _traceless() -> Iterator[None]:
    """torch keeps for ever what it has met: the text of every graph that it made, of which there are many on the way,
    and the shapes that operations had. A process may export for weeks.
    """
    loader = getattr(torch.fx.graph_module, "_loader", None)
    texts: dict[str, Any] = getattr(loader, "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in texts.keys() - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)
        if len(getattr(FakeTensorMode, "cache", ())) > MOST_SHAPES:
            FakeTensorMode.cache_clear()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _normalise(program: ExportedProgram, in_spec: pytree.TreeSpec) -> Exported:
    unmerge_linears(program.graph)
    inputs: list[fx.Node] = []
    weights: dict[fx.Node, Weight] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            weights[node] = _weight(program, str(spec.target), spec.kind)
        else:
            raise Unfusible(f"input {node.name} is of a kind that cannot be shared: {spec.kind.name}")
    return Exported(
        graph=program.graph,
        rows=_row_symbol(inputs),
        inputs=tuple(inputs),
        weights=weights,
        outputs=_outputs(program),
        in_spec=in_spec,
        out_spec=program.call_spec.out_spec,
    )


def _weight(program: ExportedProgram, name: str, kind: InputKind) -> Weight:
    source = program.state_dict if name in program.state_dict else program.constants
    tensor = source[name]
    if not isinstance(tensor, Tensor):
        raise Unfusible(f"{name} is a {type(tensor).__name__}, not a tensor")
    return Weight(name, tensor, is_constant=kind is InputKind.CONSTANT_TENSOR)


def _outputs(program: ExportedProgram) -> tuple[Any, ...]:
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise Unfusible(f"the module writes its own state: {spec.kind.name.lower()} of {spec.target}")
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    return tuple(output.args[0])


def _row_symbol(inputs: list[fx.Node]) -> Any:
    symbols = set()
    for node in inputs:
        value = node.meta["val"]
        if not isinstance(value.shape[0], torch.SymInt):
            raise Unfusible(f"the code fixes the number of rows of input {node.name} to {value.shape[0]}")
        symbols |= value.shape[0].node.expr.free_symbols
    if len(symbols) != 1:
        raise Unfusible(f"inputs have independent row counts: {sorted(map(str, symbols))}")
    return symbols.pop()
