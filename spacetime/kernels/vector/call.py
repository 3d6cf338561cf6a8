"""What all kernels of single layers have in common: how they are called, and padded copies of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.emitter import INT, Emitter, Value, int_of
from spacetime.kernels.vector.geometry import HIGH, LOW, POSITIONS
from spacetime.kernels.vector.threads import launch

# Every kernel takes these, all as integers. weight: where entry 0 lies. places: 0, or where the weights of each run lie
# if that is not all in one stack. scale, shift: 0 where the layer has none. runs: three words for each run of rows that
# use the same entry: entry, first row, number of rows. scratch: room for the padded input, or 0.
ARGUMENTS = ("x", "y", "weight", "places", "scale", "shift", "geometry", "runs", "num_runs", "scratch", "threads")
RUN_WORDS = 3
_WORD_BYTES = 8


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call as values of the function that reads them."""

    emitter: Emitter
    values: dict[str, Value]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def geometry(self, name: str) -> Value:
        return self.emitter.load_int(self["geometry"], POSITIONS[name])

    def bounds(self) -> tuple[Value, Value]:
        base, e = self["geometry"], self.emitter
        return tuple(e.load_float(e.b.add(base, int_of(place * _WORD_BYTES))) for place in (LOW, HIGH))

    def run(self, number: Value) -> tuple[Value, Value, Value]:
        """Entry, first row and number of rows."""
        first = self.emitter.b.mul(number, int_of(RUN_WORDS))
        entry, start, count = (
            self.emitter.load_int(self["runs"], self.emitter.b.add(first, int_of(offset)))
            for offset in range(RUN_WORDS)
        )
        return entry, start, count


Body = Callable[
    [Emitter, Arguments, Value, Value], None
]  # (emitter, arguments, thread, threads): its share of the work


def define(module: ir.Module, name: str, body: Body, lanes: int, *, threads: bool) -> None:
    """The function `name`, and what it consists of. `threads`: may it use several?"""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * len(ARGUMENTS)), name)
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), lanes)
    given = Arguments(e, dict(zip(ARGUMENTS, function.args, strict=True)))
    x = e.choose(e.b.icmp_signed("!=", given["scratch"], int_of(0)), lambda: [_pad(e, given)], [given["x"]])[0]
    words = [x, *function.args[1:]]

    def share_of(e: Emitter, values: Sequence[Value], thread: Value, threads: Value) -> None:
        body(e, Arguments(e, dict(zip(ARGUMENTS, values, strict=True))), thread, threads)

    launch(e, name, words, given["threads"] if threads else None, share_of)


def _pad(e: Emitter, given: Arguments) -> Value:
    """Copy the batch to the scratch memory, with zeros around every image."""
    _, start, count = given.run(e.b.sub(given["num_runs"], int_of(1)))
    images = e.product(e.b.add(start, count), given.geometry("images"))
    names = ("lines", "line_floats", "lines_above", "floats_left", "padded_lines", "padded_line_floats")
    lines, floats, above, left, padded_lines, padded_floats = (given.geometry(name) for name in names)
    right = e.b.sub(e.b.sub(padded_floats, left), floats)
    below = e.b.sub(e.b.sub(padded_lines, above), lines)
    with e.loop(int_of(0), images, int_of(1)) as image:
        to = e.at(given["scratch"], e.product(image.index, padded_lines, padded_floats))
        source = e.at(given["x"], e.product(image.index, lines, floats))
        e.clear(to, e.product(above, padded_floats))
        body = e.at(to, e.product(above, padded_floats))
        with e.loop(int_of(0), lines, int_of(1)) as line:
            here = e.at(body, e.product(line.index, padded_floats))
            e.clear(here, left)
            e.copy(e.at(here, left), e.at(source, e.product(line.index, floats)), floats)
            e.clear(e.at(here, left, floats), right)
        e.clear(e.at(body, e.product(lines, padded_floats)), e.product(below, padded_floats))
    return given["scratch"]
