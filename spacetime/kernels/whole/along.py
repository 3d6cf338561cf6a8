"""Norms and softmax inside of whole programs: one vector after another, in three passes over what is in the cache."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.emitter import FLOAT, INT, WORD, Emitter, Value, int_of
from spacetime.kernels.whole.functions import Math

KINDS = ("layer_norm", "softmax")


def define_along(module: ir.Module, kind: str, lanes: int) -> ir.Function:
    """kind(x, y, size, epsilon): one vector. The name says what."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT, INT, INT, FLOAT]), kind)
    function.linkage = "internal"
    function.attributes.add("noinline")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    x, y, size, epsilon = function.args
    vector = Vector(e, x, y, size)
    if kind == "layer_norm":
        _layer_norm(vector, epsilon)
    else:
        _softmax(vector)
    e.b.ret_void()
    return function


class Vector:
    """Loops over a vector's registers; lanes beyond its end hold `outside`."""

    def __init__(self, e: Emitter, x: Value, y: Value, size: Value) -> None:
        self.e, self.x, self.y, self.size, self.math = e, x, y, size, Math(e)
        self.floats = e.b.sitofp(size, FLOAT)

    def fold(self, source: Value, start: float, take: Callable[[Value, Value], Value], outside: float) -> Value:
        """One register: take(result so far, next register)."""
        e = self.e
        with e.loop(int_of(0), self.size, int_of(e.lanes), [self.math.number(start)]) as some:
            mask = e.mask(e.b.sub(self.size, some.index))
            values = e.load(e.at(source, some.index), mask)
            some.next = [take(some.carried[0], e.b.select(mask, values, self.math.number(outside)))]
        return some.carried[0]

    def map(self, source: Value, function: Callable[[Value], Value]) -> None:
        e = self.e
        with e.loop(int_of(0), self.size, int_of(e.lanes)) as some:
            mask = e.mask(e.b.sub(self.size, some.index))
            e.store(function(e.load(e.at(source, some.index), mask)), e.at(self.y, some.index), mask)

    def across(self, register: Value, join: Callable[[Value, Value], Value]) -> Value:
        """All lanes joined, in every lane."""
        e, distance = self.e, self.e.lanes // 2
        while distance:
            places = [(lane + distance) % e.lanes for lane in range(e.lanes)]
            moved = e.b.shuffle_vector(register, register, ir.Constant(ir.VectorType(WORD, e.lanes), places))
            register = join(register, moved)
            distance //= 2
        return register

    def largest(self) -> Value:
        """Of x, in every lane."""
        larger = self.math.larger
        return self.across(self.fold(self.x, float("-inf"), larger, float("-inf")), larger)


def _layer_norm(vector: Vector, epsilon: Value) -> None:
    e, b, m = vector.e, vector.e.b, vector.math
    count = e.spread(vector.floats)
    mean = b.fdiv(vector.across(vector.fold(vector.x, 0.0, b.fadd, 0.0), b.fadd), count)
    vector.map(vector.x, lambda x: b.fsub(x, mean))
    squares = vector.fold(vector.y, 0.0, lambda total, x: e.fma(x, x, total), 0.0)
    variance = b.fdiv(vector.across(squares, b.fadd), count)
    deviation = m.root(b.fadd(variance, e.spread(epsilon)))
    vector.map(vector.y, lambda x: b.fdiv(x, deviation))


def _softmax(vector: Vector) -> None:
    """NaN and infinity end as in PyTorch: a sum that is none makes the whole vector none."""
    b, m = vector.e.b, vector.math
    largest = vector.largest()
    vector.map(vector.x, lambda x: m.exp(b.fsub(x, largest)))
    total = vector.across(vector.fold(vector.y, 0.0, b.fadd, 0.0), b.fadd)
    vector.map(vector.y, lambda x: b.fdiv(x, total))
