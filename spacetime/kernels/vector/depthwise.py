"""Depthwise convolution: every channel has a window of its own. Lanes are channels; a few pixels at a time."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.call import Arguments, Body
from spacetime.kernels.vector.emitter import WORD, Emitter, Value, int_of
from spacetime.kernels.vector.product import window

_PIXELS = 4


def depthwise(height: int, width: int) -> Body:
    """The kernel for windows of this size."""

    def body(e: Emitter, given: Arguments, thread: Value, threads: Value) -> None:
        channels = given.geometry("channels")
        images, image_pixels = given.geometry("images"), given.geometry("pixels")
        first, last = _channels_of(e, channels, thread, threads)
        with e.loop(int_of(0), given["num_runs"], int_of(1)) as run:
            entry, start, count = given.run(run.index)
            begin = e.product(start, images, image_pixels)
            end = e.sum(begin, e.product(count, images, image_pixels))
            with e.loop(first, last, int_of(e.lanes)) as block:
                some = _Channels(e, given, entry, block.index, (height, width))
                with e.loop(begin, end, int_of(_PIXELS)) as group:
                    final = e.b.sub(end, int_of(1))
                    some.compute([e.least(e.b.add(group.index, int_of(i)), final) for i in range(_PIXELS)])

    return body


def _channels_of(e: Emitter, channels: Value, thread: Value, threads: Value) -> tuple[Value, Value]:
    blocks = e.b.sdiv(e.b.add(channels, int_of(e.lanes - 1)), int_of(e.lanes))
    each = e.b.mul(e.b.sdiv(e.b.sub(e.b.add(blocks, threads), int_of(1)), threads), int_of(e.lanes))
    first = e.b.mul(thread, each)
    return first, e.least(e.b.add(first, each), channels)


class _Channels:
    """As many channels of one entry as there are lanes, or those that are left."""

    def __init__(self, e: Emitter, given: Arguments, entry: Value, first: Value, size: tuple[int, int]) -> None:
        self.e, self.given, self.first, self.size = e, given, first, size
        self.channels = given.geometry("channels")
        left = e.b.sub(self.channels, first)
        self.mask = e.mask(left)
        begin = e.b.add(e.product(entry, self.channels), first)
        self.weights = self._weights(begin, left)
        self.scale = self._vector("scale", begin, 1.0)
        self.shift = self._vector("shift", begin, 0.0)

    def _weights(self, begin: Value, left: Value) -> list[Value]:
        """By position in the window: in memory the window of a channel is in one piece, so lanes are far apart."""
        e, taps = self.e, self.size[0] * self.size[1]
        numbers = [e.least(int_of(lane), e.b.sub(left, int_of(1))) for lane in range(e.lanes)]
        bases = [e.at(self.given["weight"], e.product(e.b.add(begin, number), int_of(taps))) for number in numbers]
        vectors = []
        for tap in range(taps):
            vector = ir.Constant(e.vector, ir.Undefined)
            for lane, base in enumerate(bases):
                vector = e.b.insert_element(vector, e.load_float(e.at(base, int_of(tap))), WORD(lane))
            vectors.append(vector)
        return vectors

    def _vector(self, name: str, begin: Value, default: float) -> Value:
        e, base = self.e, self.given[name]
        present = e.b.icmp_signed("!=", base, int_of(0))
        constant = ir.Constant(e.vector, [default] * e.lanes)
        return e.choose(present, lambda: [e.load(e.at(base, begin), self.mask)], [constant])[0]

    def compute(self, pixels: Sequence[Value]) -> None:
        e, (height, width) = self.e, self.size
        line_step = self.given.geometry("segment_step")
        low, high = (e.spread(bound) for bound in self.given.bounds())
        bases = [e.at(window(e, self.given, pixel), self.first) for pixel in pixels]
        sums = [e.zero] * len(pixels)
        for line in range(height):
            for column in range(width):
                offsets = e.product(int_of(line), line_step), e.product(int_of(column), self.channels)
                weight = self.weights[line * width + column]
                for number, base in enumerate(bases):
                    sums[number] = e.fma(e.load(e.at(base, *offsets), self.mask), weight, sums[number])
        for pixel, total in zip(pixels, sums, strict=True):
            value = e.clamp(e.fma(total, self.scale, self.shift), low, high)
            e.store(value, e.at(self.given["y"], e.product(pixel, self.channels), self.first), self.mask)
