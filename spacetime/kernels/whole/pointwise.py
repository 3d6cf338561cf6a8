"""A run of pointwise operations as one loop: read what comes from outside, compute in registers, write for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.emitter import INT, Emitter, Value, int_of
from spacetime.kernels.whole.functions import FUNCTIONS, Math
from spacetime.kernels.whole.script import Argument, Pointwise, Result, View


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop, and what one turn is in every view."""

    size: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """What a stage is without the places of its views: equal passes are one function."""

    axes: tuple[Axis, ...]
    operations: tuple[tuple[str, tuple[int | float | Result, ...]], ...]  # an integer is the number of a view
    stores: tuple[tuple[int, int], ...]


def views_of(stage: Pointwise) -> tuple[View, ...]:
    """Everything it reads or writes, once."""
    read = [given for operation in stage.operations for given in operation.arguments if isinstance(given, View)]
    return tuple(dict.fromkeys([*read, *[view for _, view in stage.stores]]))


def pass_of(stage: Pointwise) -> Pass | None:
    """None where there is to be computed with what are no neighbours in memory: that would be one float at a time."""
    views = views_of(stage)
    axes = _axes(stage.shape, views)
    if not _are_neighbours(axes) and any(operation.name != "copy" for operation in stage.operations):
        return None
    number = {view: place for place, view in enumerate(views)}

    def given(argument: Argument) -> int | float | Result:
        return number[argument] if isinstance(argument, View) else argument

    operations = tuple((each.name, tuple(map(given, each.arguments))) for each in stage.operations)
    return Pass(axes, operations, tuple((result, number[view]) for result, view in stage.stores))


def _axes(shape: Sequence[int], views: Sequence[View]) -> tuple[Axis, ...]:
    """As few loops as the views allow, the innermost last."""
    axes: list[Axis] = []
    for place, size in enumerate(shape):
        steps = tuple(view.strides[place] for view in views)
        if axes and all(outer == size * inner for outer, inner in zip(axes[-1].steps, steps, strict=True)):
            axes[-1] = Axis(axes[-1].size * size, steps)
        else:
            axes.append(Axis(size, steps))
    return tuple(axes) or (Axis(1, (1,) * len(views)),)


def _are_neighbours(axes: Sequence[Axis]) -> bool:
    """Does a register's worth of turns find one in memory, or one float for all?"""
    return all(step in (0, 1) for step in axes[-1].steps)


def define_pass(module: ir.Module, name: str, lanes: int, work: Pass) -> ir.Function:
    """name(address of each view, part, parts): the part of the innermost loop, for all turns of the others."""
    kind = ir.FunctionType(ir.VoidType(), [INT] * (len(work.axes[-1].steps) + 2))
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes if _are_neighbours(work.axes) else 1)
    *addresses, part, parts = function.args
    _Loop(e, work, *share(e, work.axes[-1].size, part, parts)).emit(addresses, work.axes)
    e.b.ret_void()
    return function


def share(e: Emitter, size: int, part: Value, parts: Value) -> tuple[Value, Value]:
    """First and last of so many floats; all but the end begin at a whole register."""
    registers = int_of(-(-size // e.lanes))
    each = e.product(e.b.sdiv(e.sum(registers, parts, int_of(-1)), parts), int_of(e.lanes))
    first = e.least(e.product(part, each), int_of(size))
    return first, e.least(e.b.add(first, each), int_of(size))


class _Loop:
    def __init__(self, e: Emitter, work: Pass, first: Value, last: Value) -> None:
        self.e, self.work, self.first, self.last = e, work, first, last

    def emit(self, addresses: Sequence[Value], axes: Sequence[Axis]) -> None:
        e, (axis, *inner) = self.e, axes
        if not inner:
            self._innermost(addresses)
            return
        with e.loop(int_of(0), int_of(axis.size), int_of(1)) as turn:
            moved = [
                e.at(address, e.product(turn.index, int_of(step)))
                for address, step in zip(addresses, axis.steps, strict=True)
            ]
            self.emit(moved, inner)

    def _innermost(self, addresses: Sequence[Value]) -> None:
        e = self.e
        whole = e.b.add(self.first, e.round_down(e.b.sub(self.last, self.first), e.lanes))
        with e.loop(self.first, whole, int_of(e.lanes)) as some:
            self._compute(addresses, some.index, None)
        if self.work.axes[-1].size % e.lanes:
            rest = e.b.sub(self.last, whole)
            with e.b.if_then(e.b.icmp_signed(">", rest, int_of(0))):
                self._compute(addresses, whole, e.mask(rest))

    def _compute(self, addresses: Sequence[Value], index: Value, mask: Value | None) -> None:
        e, work = self.e, self.work
        steps = work.axes[-1].steps
        loaded: dict[int, Value] = {}
        results: list[Value] = []
        for name, arguments in work.operations:
            values = []
            for given in arguments:
                if isinstance(given, Result):
                    values.append(results[given.number])
                elif isinstance(given, int):
                    values.append(self._load(loaded, addresses[given], steps[given], given, index, mask))
                else:
                    values.append(Math(e).number(given))
            results.append(FUNCTIONS[name].emit(e, *values))
        for number, view in work.stores:
            e.store(results[number], e.at(addresses[view], e.product(index, int_of(steps[view]))), mask)

    def _load(
        self, loaded: dict[int, Value], address: Value, step: int, view: int, index: Value, mask: Value | None
    ) -> Value:
        if view not in loaded:
            e = self.e
            loaded[view] = (
                e.load(e.at(address, e.product(index, int_of(step))), mask) if step else e.spread(e.load_float(address))
            )
        return loaded[view]


Functions = Mapping[Pass, ir.Function]
