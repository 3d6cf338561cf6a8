"""Products inside of whole programs: a few outputs by a few positions at a time, the weights read once, in place.

With one or two positions the weights are all the traffic, so tiles are tall; with more, tiles are square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.blocks import within
from spacetime.kernels.vector.emitter import INT, Emitter, Value, int_of

FEW = 2  # positions that are served by tall tiles

# Rows and positions are reached by steps in floats: of a row, then of a position in it. `first` and `last` are outputs.
PARAMETERS = (
    "x",
    "x_row",
    "x_position",
    "y",
    "y_row",
    "y_position",
    "positions",
    "total",
    "weight",
    "weight_step",
    "bias",
    "inputs",
    "first",
    "last",
)


@dataclass(frozen=True, slots=True)
class Tile:
    positions: int
    outputs: int  # divides the lanes


def define_product(module: ir.Module, lanes: int, tall: Tile, square: Tile) -> ir.Function:
    """`product(*PARAMETERS)`."""
    kind = ir.FunctionType(ir.VoidType(), [INT] * len(PARAMETERS))
    function = ir.Function(module, kind, "product")
    function.linkage = "internal"
    function.attributes.add("noinline")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    given = dict(zip(PARAMETERS, function.args, strict=True))
    few, many, after = (e.b.append_basic_block(name) for name in ("few", "many", "after"))
    e.b.cbranch(e.b.icmp_signed("<=", given["total"], int_of(FEW)), few, many)
    for block, tile in ((few, tall), (many, square)):
        e.b.position_at_end(block)
        with e.loop(given["first"], given["last"], int_of(tile.outputs)) as outputs:
            _Outputs(e, given, tile, outputs.index).compute()
        e.b.branch(after)
    e.b.position_at_end(after)
    e.b.ret_void()
    return function


class _Outputs:
    """A tile's height of outputs, for all positions. Those that stick out compute the last one again."""

    def __init__(self, e: Emitter, given: dict[str, Value], tile: Tile, first: Value) -> None:
        self.e, self.given, self.tile, self.first = e, given, tile, first
        self.numbers = within(e, first, tile.outputs, given["last"])
        self.weights = [e.at(given["weight"], e.product(number, given["weight_step"])) for number in self.numbers]
        self.mask = e.mask(e.b.sub(given["last"], first), tile.outputs)
        self.whole = e.round_down(given["inputs"], e.lanes)
        self.rest = e.b.sub(given["inputs"], self.whole)
        bias = given["bias"]
        nothing = ir.Constant(ir.VectorType(e.vector.element, tile.outputs), [0.0] * tile.outputs)
        present = e.b.icmp_signed("!=", bias, int_of(0))
        self.bias = e.choose(present, lambda: [e.load(e.at(bias, first), self.mask)], [nothing])[0]

    def compute(self) -> None:
        e, tile = self.e, self.tile
        with e.loop(int_of(0), self.given["total"], int_of(tile.positions)) as some:
            places = [self._split(number) for number in within(e, some.index, tile.positions, self.given["total"])]
            inputs = list(starmap(self._input, places))
            with e.loop(int_of(0), self.whole, int_of(e.lanes), [e.zero] * (tile.positions * tile.outputs)) as part:
                part.next = self._add(part.carried, inputs, part.index, None)
            sums = e.choose(
                e.b.icmp_signed(">", self.rest, int_of(0)),
                lambda: self._add(part.carried, inputs, self.whole, e.mask(self.rest)),
                part.carried,
            )
            self._write(places, sums)

    def _split(self, number: Value) -> tuple[Value, Value]:
        """Row and position in it."""
        row = self.e.b.sdiv(number, self.given["positions"])
        return row, self.e.b.sub(number, self.e.b.mul(row, self.given["positions"]))

    def _input(self, row: Value, position: Value) -> Value:
        e, given = self.e, self.given
        return e.at(given["x"], e.product(row, given["x_row"]), e.product(position, given["x_position"]))

    def _output(self, row: Value, position: Value) -> Value:
        e, given = self.e, self.given
        return e.at(given["y"], e.product(row, given["y_row"]), e.product(position, given["y_position"]), self.first)

    def _add(self, sums: Sequence[Value], inputs: Sequence[Value], place: Value, mask: Value | None) -> list[Value]:
        e = self.e
        weights = [e.load(e.at(base, place), mask) for base in self.weights]
        result = []
        for row, base in enumerate(inputs):
            x = e.load(e.at(base, place), mask)
            result += [e.fma(x, w, sums[row * len(weights) + column]) for column, w in enumerate(weights)]
        return result

    def _write(self, places: Sequence[tuple[Value, Value]], sums: Sequence[Value]) -> None:
        e, outputs = self.e, self.tile.outputs
        at_once = e.lanes // outputs
        sums = [*sums, *[e.zero] * (-len(sums) % e.lanes)]
        for first in range(0, len(places), at_once):
            totals = e.totals(sums[first * outputs : (first + at_once) * outputs])
            for offset, place in enumerate(places[first : first + at_once]):
                value = e.b.fadd(e.part(totals, offset * outputs, outputs), self.bias)
                e.store(value, self._output(*place), self.mask)
