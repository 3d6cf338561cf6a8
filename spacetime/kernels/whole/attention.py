"""Attention inside of whole programs: one head after another, its scores in scratch memory that stays in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.blocks import within
from spacetime.kernels.vector.emitter import FLOAT, INT, Emitter, Value, int_of
from spacetime.kernels.vector.host import Host
from spacetime.kernels.whole.along import Vector
from spacetime.kernels.whole.product import PARAMETERS
from spacetime.kernels.whole.script import Heads, Mask

ADDRESSES = ("queries", "keys", "values", "mask", "y", "scores")  # of a row; no mask: 0


def define_attention(module: ir.Module, on: Host, name: str, product: ir.Function, work: Heads) -> ir.Function:
    """name(*ADDRESSES, first head, last head). Everything else is known when it is compiled."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * (len(ADDRESSES) + 2)), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), on.lanes)
    *places, first, last = function.args
    with e.loop(first, last, int_of(1)) as number:
        steps = [each.head for each in (work.queries, work.keys, work.values, work.masks, work.y)]
        steps.append(work.num_queries * work.num_keys)
        moved = [e.at(place, e.product(number.index, int_of(step))) for place, step in zip(places, steps, strict=True)]
        _Head(e, on, work, product, dict(zip(ADDRESSES, moved, strict=True))).compute()
    e.b.ret_void()
    return function


@dataclass(frozen=True, slots=True)
class _Head:
    e: Emitter
    on: Host
    work: Heads
    product: ir.Function
    places: dict[str, Value]

    def compute(self) -> None:
        self._score()
        with self.e.loop(int_of(0), int_of(self.work.num_queries), int_of(1)) as query:
            self._weigh(query.index)
        registers = -(-self.work.value_size // self.e.lanes)
        for first in range(0, registers, self.on.channels):
            self._mix(range(first, min(registers, first + self.on.channels)))

    def _score(self) -> None:
        """Of every query and key, their product."""
        work = self.work
        sizes = {
            "x_position": work.queries.vector,
            "y_position": work.num_keys,
            "positions": work.num_queries,
            "total": work.num_queries,
            "weight_step": work.keys.vector,
            "inputs": work.size,
            "last": work.num_keys,
        }
        given = {"x": self.places["queries"], "y": self.places["scores"], "weight": self.places["keys"]}
        given |= {name: int_of(size) for name, size in sizes.items()}
        self.e.b.call(self.product, [given.get(name, int_of(0)) for name in PARAMETERS])

    def _weigh(self, query: Value) -> None:
        """One query's scores -> how much it takes of each value. All 0 where it sees no key."""
        e, b, work = self.e, self.e.b, self.work
        row = e.at(self.places["scores"], e.product(query, int_of(work.num_keys)))
        seen: Value = int_of(work.num_keys)
        if work.is_causal:
            seen = e.least(b.add(query, int_of(1)), seen)
            e.clear(e.at(row, seen), b.sub(int_of(work.num_keys), seen))
        vector = Vector(e, row, row, seen)
        m = vector.math
        self._bias(query, row, seen)
        largest = vector.largest()
        nothing = b.fcmp_ordered("==", largest, m.number(float("-inf")))
        largest = b.select(nothing, e.zero, largest)
        vector.map(row, lambda score: m.exp(b.fsub(score, largest)))
        total = vector.across(vector.fold(row, 0.0, b.fadd, 0.0), b.fadd)
        total = b.select(nothing, m.number(1.0), total)
        vector.map(row, lambda share: b.fdiv(share, total))

    def _bias(self, query: Value, row: Value, seen: Value) -> None:
        """Scale the scores, and mask them."""
        e, b, work = self.e, self.e.b, self.work
        mask = e.at(self.places["mask"], e.product(query, int_of(work.masks.vector)))
        scale = e.spread(FLOAT(work.scale))
        hidden = e.spread(FLOAT(float("-inf")))
        with e.loop(int_of(0), seen, int_of(e.lanes)) as some:
            inside = e.mask(b.sub(seen, some.index))
            place = e.at(row, some.index)
            score = b.fmul(e.load(place, inside), scale)
            if work.mask is not None:
                bias = e.load(e.at(mask, some.index), inside)
                if work.mask is Mask.FLAGS:
                    score = b.select(b.fcmp_unordered("!=", bias, e.zero), score, hidden)
                else:
                    score = b.fadd(score, bias)
            e.store(score, place, inside)

    def _mix(self, registers: Sequence[int]) -> None:
        """These registers of what the queries take: a few queries at a time, value after value."""
        e, work, positions = self.e, self.work, self.on.pixels
        lanes = [(number * e.lanes, self._inside(number)) for number in registers]
        with e.loop(int_of(0), int_of(work.num_queries), int_of(positions)) as some:
            queries = within(e, some.index, positions, int_of(work.num_queries))
            rows = [e.at(self.places["scores"], e.product(query, int_of(work.num_keys))) for query in queries]
            with e.loop(int_of(0), int_of(work.num_keys), int_of(1), [e.zero] * (positions * len(lanes))) as key:
                base = e.at(self.places["values"], e.product(key.index, int_of(work.values.vector)))
                loaded = [e.load(e.at(base, int_of(first)), inside) for first, inside in lanes]
                shares = [e.spread(e.load_float(e.at(row, key.index))) for row in rows]
                pairs = [(share, value) for share in shares for value in loaded]
                key.next = [e.fma(*pair, total) for pair, total in zip(pairs, key.carried, strict=True)]
            for number, query in enumerate(queries):
                to = e.at(self.places["y"], e.product(query, int_of(work.y.vector)))
                totals = key.carried[number * len(lanes) : (number + 1) * len(lanes)]
                for total, (first, inside) in zip(totals, lanes, strict=True):
                    e.store(total, e.at(to, int_of(first)), inside)

    def _inside(self, register: int) -> Value | None:
        """Of the last one, what exists."""
        left = self.work.value_size - register * self.e.lanes
        return None if left >= self.e.lanes else self.e.mask(int_of(left))
