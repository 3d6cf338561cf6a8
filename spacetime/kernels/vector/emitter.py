"""Loops, addresses and vectors in LLVM's language, so that kernels read like the loops that they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

FLOAT, INT, BIT, BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(1), ir.IntType(8)
WORD = ir.IntType(32)
FLOAT_BYTES = 4

Value = Any  # llvmlite has no types for type checkers


def int_of(number: int) -> Value:
    return ir.Constant(INT, number)


@dataclass
class Loop:
    """The body of a loop: its counter, the values carried so far, and where to leave those of the next turn."""

    index: Value
    carried: list[Value]
    next: list[Value] = field(default_factory=list)


class Emitter:
    """Writes into one function. Addresses are integers, in bytes, until something is loaded or stored."""

    def __init__(self, module: ir.Module, builder: ir.IRBuilder, lanes: int) -> None:
        self.module, self.b, self.lanes = module, builder, lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.zero = ir.Constant(self.vector, [0.0] * lanes)

    @contextmanager
    def loop(self, start: Value, stop: Value, step: Value, carried: Sequence[Value] = ()) -> Iterator[Loop]:
        """for index in range(start, stop, step); afterwards `carried` of the loop holds the final values."""
        b, before = self.b, self.b.block
        head, body, after = (b.append_basic_block(name) for name in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(INT)
        index.add_incoming(start, before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", index, stop), body, after)
        b.position_at_end(body)
        loop = Loop(index, list(values))
        yield loop
        index.add_incoming(b.add(index, step), b.block)
        for phi, value in zip(values, loop.next, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)

    def choose(self, condition: Value, yes: Callable[[], list[Value]], no: list[Value]) -> list[Value]:
        """The values of `yes` where the condition holds, else `no`; with a jump, so `yes` may read memory."""
        b, before = self.b, self.b.block
        inside, after = b.append_basic_block("inside"), b.append_basic_block("after")
        b.cbranch(condition, inside, after)
        b.position_at_end(inside)
        values = yes()
        end = b.block
        b.branch(after)
        b.position_at_end(after)
        joined = []
        for value, other in zip(values, no, strict=True):
            phi = b.phi(value.type)
            phi.add_incoming(value, end)
            phi.add_incoming(other, before)
            joined.append(phi)
        return joined

    def least(self, a: Value, b: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def round_down(self, value: Value, multiple: int) -> Value:
        return self.b.mul(self.b.sdiv(value, int_of(multiple)), int_of(multiple))

    def sum(self, *values: Value) -> Value:
        total = values[0]
        for value in values[1:]:
            total = self.b.add(total, value)
        return total

    def product(self, *values: Value) -> Value:
        total = values[0]
        for value in values[1:]:
            total = self.b.mul(total, value)
        return total

    def at(self, address: Value, *floats: Value) -> Value:
        """The address so many floats further on."""
        return self.b.add(address, self.b.mul(self.sum(*floats), int_of(FLOAT_BYTES)))

    def load_int(self, address: Value, position: int | Value) -> Value:
        offset = int_of(position) if isinstance(position, int) else position
        return self.b.load(self.b.gep(self.b.inttoptr(address, INT.as_pointer()), [offset]))

    def load_float(self, address: Value) -> Value:
        return self.b.load(self.b.inttoptr(address, FLOAT.as_pointer()))

    def store_float(self, value: Value, address: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, FLOAT.as_pointer()))

    def load(self, address: Value, mask: Value | None = None) -> Value:
        """One register of floats, or as many as the mask is long; those outside of it are not read, and zero."""
        if mask is None:
            return self.b.load(self.b.inttoptr(address, self.vector.as_pointer()), align=FLOAT_BYTES)
        kind = ir.VectorType(FLOAT, mask.type.count)
        read = self.extern(f"llvm.masked.load.v{kind.count}f32.p0", kind, [kind.as_pointer(), WORD, mask.type, kind])
        nothing = ir.Constant(kind, [0.0] * kind.count)
        return self.b.call(read, [self.b.inttoptr(address, kind.as_pointer()), WORD(FLOAT_BYTES), mask, nothing])

    def store(self, value: Value, address: Value, mask: Value | None = None) -> None:
        kind = value.type
        if mask is None:
            self.b.store(value, self.b.inttoptr(address, kind.as_pointer()), align=FLOAT_BYTES)
            return
        write = self.extern(
            f"llvm.masked.store.v{kind.count}f32.p0", ir.VoidType(), [kind, kind.as_pointer(), WORD, mask.type]
        )
        self.b.call(write, [value, self.b.inttoptr(address, kind.as_pointer()), WORD(FLOAT_BYTES), mask])

    def mask(self, count: Value, lanes: int | None = None) -> Value:
        """The first `count` of so many lanes."""
        lanes = lanes or self.lanes
        numbers = ir.Constant(ir.VectorType(INT, lanes), list(range(lanes)))
        return self.b.icmp_signed("<", numbers, self.spread(count, lanes))

    def spread(self, value: Value, lanes: int | None = None) -> Value:
        """The value in every lane."""
        lanes = lanes or self.lanes
        kind = ir.VectorType(value.type, lanes)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
        return self.b.shuffle_vector(first, first, ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, of vectors."""
        function = self.extern(f"llvm.fma.v{self.lanes}f32", self.vector, [self.vector] * 3)
        return self.b.call(function, [a, b, c])

    def totals(self, vectors: Sequence[Value]) -> Value:
        """As many vectors as there are lanes; lane i of the result is the sum of the lanes of vector i.

        Pairs of vectors become one, in which their lanes are added up in pairs: by the lanes in which the one and the
        other belong already, which is a blend, and by their neighbours, which takes the only shuffle.
        """
        assert len(vectors) == self.lanes, (len(vectors), self.lanes)
        distance = 1
        while len(vectors) > 1:
            stay = [lane + (self.lanes if lane & distance else 0) for lane in range(self.lanes)]
            move = [lane ^ distance for lane in stay]
            places = [ir.Constant(ir.VectorType(WORD, self.lanes), each) for each in (stay, move)]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.b.fadd(*[self.b.shuffle_vector(a, b, each) for each in places]) for a, b in pairs]
            distance *= 2
        return vectors[0]

    def part(self, vector: Value, first: int, count: int) -> Value:
        """Some of its lanes, as a shorter vector."""
        places = ir.Constant(ir.VectorType(WORD, count), list(range(first, first + count)))
        return self.b.shuffle_vector(vector, vector, places)

    def repeat(self, vector: Value, times: int) -> Value:
        """The vector so many times, one behind the other."""
        places = list(range(vector.type.count)) * times
        return self.b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(WORD, len(places)), places))

    def clamp(self, value: Value, low: Value, high: Value) -> Value:
        """NaN stays NaN, as PyTorch's activations have it."""
        value = self.b.select(self.b.fcmp_ordered("<", value, low), low, value)
        return self.b.select(self.b.fcmp_ordered(">", value, high), high, value)

    def copy(self, to: Value, source: Value, floats: Value) -> None:
        pointer = BYTE.as_pointer()
        move = self.extern("llvm.memcpy.p0.p0.i64", ir.VoidType(), [pointer, pointer, INT, BIT])
        size = self.b.mul(floats, int_of(FLOAT_BYTES))
        self.b.call(move, [self.b.inttoptr(to, pointer), self.b.inttoptr(source, pointer), size, BIT(0)])

    def clear(self, to: Value, floats: Value) -> None:
        fill = self.extern("llvm.memset.p0.i64", ir.VoidType(), [BYTE.as_pointer(), BYTE, INT, BIT])
        size = self.b.mul(floats, int_of(FLOAT_BYTES))
        self.b.call(fill, [self.b.inttoptr(to, BYTE.as_pointer()), BYTE(0), size, BIT(0)])

    def extern(self, name: str, result: Value, arguments: Sequence[Value]) -> Value:
        """A function that is defined elsewhere, or an intrinsic."""
        found = self.module.globals.get(name)
        return found or ir.Function(self.module, ir.FunctionType(result, arguments), name)
