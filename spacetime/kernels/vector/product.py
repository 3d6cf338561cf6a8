"""Rows times weights: y[pixel, channel] = act(scale * sum(window of the pixel * weights of the channel) + shift).

A tile of a few pixels by a few channels stays in registers as vectors of partial sums while its windows and weights
are read once; the lanes are summed up at the end. Tiles that stick out compute the last pixel or channel again.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.blocks import Block, over_blocks, tiles, window, within
from spacetime.kernels.vector.call import Arguments, Body
from spacetime.kernels.vector.emitter import FLOAT, Emitter, Value, int_of


def product(pixels: int, channels: int) -> Body:
    """The kernel with tiles of this size; `channels` divides the lanes, and they divide the size of a tile."""

    def body(e: Emitter, given: Arguments, thread: Value, threads: Value) -> None:
        with over_blocks(e, given, thread, threads, channels) as block:
            tile = _Tile(e, given, block, channels)
            with tiles(e, block.begin, block.end, pixels) as some:
                tile.compute(some)

    return body


class _Tile:
    """Some channels of one entry, for any pixels."""

    def __init__(self, e: Emitter, given: Arguments, block: Block, size: int) -> None:
        self.e, self.given = e, given
        self.numbers = numbers = within(e, block.first, size, block.last)
        self.channels = given.geometry("channels")
        self.segments, self.floats = given.geometry("segments"), given.geometry("segment_floats")
        self.whole = e.round_down(self.floats, e.lanes)
        self.rest = e.b.sub(self.floats, self.whole)
        floats = given.geometry("weights")
        self.weights = [e.at(block.weights, e.product(number, floats)) for number in numbers]
        first = e.product(block.entry, self.channels)
        self.mask = e.mask(e.b.sub(block.last, block.first), size)
        self.scale = self._of_channels("scale", first, 1.0)
        self.shift = self._of_channels("shift", first, 0.0)

    def _of_channels(self, name: str, first: Value, default: float) -> Value:
        """One value per sum of a register of sums."""
        e, base, count = self.e, self.given[name], len(self.numbers)
        constant = ir.Constant(ir.VectorType(FLOAT, count), [default] * count)
        present = e.b.icmp_signed("!=", base, int_of(0))
        values = e.choose(present, lambda: [e.load(e.at(base, first, self.numbers[0]), self.mask)], [constant])
        return e.repeat(values[0], e.lanes // count)

    def compute(self, pixels: Sequence[Value]) -> None:
        e = self.e
        windows = [window(e, self.given, pixel) for pixel in pixels]
        sums = [e.zero] * (len(pixels) * len(self.numbers))
        step, mask = self.given.geometry("segment_step"), e.mask(self.rest)
        with e.loop(int_of(0), self.segments, int_of(1), sums) as segment:
            inputs = [e.at(base, e.product(segment.index, step)) for base in windows]
            weights = [e.at(base, e.product(segment.index, self.floats)) for base in self.weights]
            with e.loop(int_of(0), self.whole, int_of(e.lanes), segment.carried) as some:
                some.next = self._add(some.carried, inputs, weights, some.index, None)
            segment.next = e.choose(
                e.b.icmp_signed(">", self.rest, int_of(0)),
                lambda: self._add(some.carried, inputs, weights, self.whole, mask),
                some.carried,
            )
        self._write(pixels, segment.carried)

    def _add(
        self, sums: Sequence[Value], inputs: Sequence[Value], weights: Sequence[Value], place: Value, mask: Value | None
    ) -> list[Value]:
        e = self.e
        theirs = [e.load(e.at(base, place), mask) for base in weights]
        result = []
        for row, base in enumerate(inputs):
            x = e.load(e.at(base, place), mask)
            result += [e.fma(x, w, sums[row * len(theirs) + column]) for column, w in enumerate(theirs)]
        return result

    def _write(self, pixels: Sequence[Value], sums: Sequence[Value]) -> None:
        e, channels = self.e, len(self.numbers)
        low, high = (e.spread(bound) for bound in self.given.bounds())
        at_once = e.lanes // channels
        for first in range(0, len(pixels), at_once):
            totals = e.totals(sums[first * channels : (first + at_once) * channels])
            values = e.clamp(e.fma(totals, self.scale, self.shift), low, high)
            for offset, pixel in enumerate(pixels[first : first + at_once]):
                to = e.at(self.given["y"], e.product(pixel, self.channels), self.numbers[0])
                e.store(e.part(values, offset * channels, channels), to, self.mask)
