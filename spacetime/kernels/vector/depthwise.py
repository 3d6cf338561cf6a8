"""Depthwise convolution: every channel has a window of its own. Lanes are channels; a few pixels at a time."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.blocks import Block, Channels, over_blocks, tiles, window
from spacetime.kernels.vector.call import Arguments, Body
from spacetime.kernels.vector.emitter import WORD, Emitter, Value, int_of

_PIXELS = 4


def depthwise(height: int, width: int) -> Body:
    """The kernel for windows of this size."""

    def body(e: Emitter, given: Arguments, thread: Value, threads: Value) -> None:
        with over_blocks(e, given, thread, threads, e.lanes) as block:
            channels = Channels(e, given, block)
            weights = _weights(e, block, channels, height * width)
            with tiles(e, block.begin, block.end, _PIXELS) as pixels:
                _compute(e, given, channels, weights, (height, width), pixels)

    return body


def _weights(e: Emitter, block: Block, channels: Channels, taps: int) -> list[Value]:
    """By position in the window: in memory the window of a channel is in one piece, so lanes are far apart."""
    numbers = [e.least(int_of(lane), e.b.sub(channels.left, int_of(1))) for lane in range(e.lanes)]
    bases = [e.at(block.weights, e.product(e.b.add(block.first, number), int_of(taps))) for number in numbers]
    vectors = []
    for tap in range(taps):
        vector = ir.Constant(e.vector, ir.Undefined)
        for lane, base in enumerate(bases):
            vector = e.b.insert_element(vector, e.load_float(e.at(base, int_of(tap))), WORD(lane))
        vectors.append(vector)
    return vectors


def _compute(
    e: Emitter,
    given: Arguments,
    channels: Channels,
    weights: Sequence[Value],
    size: tuple[int, int],
    pixels: Sequence[Value],
) -> None:
    height, width = size
    line_step = given.geometry("segment_step")
    bases = [e.at(window(e, given, pixel), channels.firsts[0]) for pixel in pixels]
    sums = [e.zero] * len(pixels)
    for line in range(height):
        for column in range(width):
            offsets = e.product(int_of(line), line_step), e.product(int_of(column), channels.number)
            weight = weights[line * width + column]
            for number, base in enumerate(bases):
                sums[number] = e.fma(e.load(e.at(base, *offsets), channels.masks[0]), weight, sums[number])
    for pixel, total in zip(pixels, sums, strict=True):
        channels.write(pixel, 0, total)
