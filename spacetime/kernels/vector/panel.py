"""The product for many pixels and small windows: lanes are channels, and nothing is summed up over lanes.

The weights of a block of channels are turned around once per entry, into a panel that stays in the cache; then each
float of a window meets a register of weights. Worth it where the pixels outnumber the floats of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

from spacetime.kernels.vector.blocks import Block, Channels, over_blocks, tiles, window
from spacetime.kernels.vector.call import Arguments, Body
from spacetime.kernels.vector.emitter import FLOAT, INT, Emitter, Value, int_of

MOST_FLOATS = 512  # of a window: the panel is on the stack of the thread


def panel(pixels: int, registers: int) -> Body:
    """The kernel with tiles of so many pixels by so many registers of channels."""

    def body(e: Emitter, given: Arguments, thread: Value, threads: Value) -> None:
        wide = e.lanes * registers
        room = e.b.ptrtoint(e.b.alloca(FLOAT, MOST_FLOATS * wide), INT)
        with over_blocks(e, given, thread, threads, wide) as block:
            channels = Channels(e, given, block, registers)
            _turn(e, block, channels, given.geometry("weights"), room, wide)
            with tiles(e, block.begin, block.end, pixels) as some:
                _compute(e, given, channels, room, some)

    return body


def _turn(e: Emitter, block: Block, channels: Channels, floats: Value, room: Value, wide: int) -> None:
    """Channels that do not exist repeat the last one; their results are not written."""
    with e.loop(int_of(0), int_of(wide), int_of(1)) as lane:
        number = e.b.add(block.first, e.least(lane.index, e.b.sub(channels.left, int_of(1))))
        source = e.at(block.weights, e.product(number, floats))
        with e.loop(int_of(0), floats, int_of(1)) as place:
            to = e.at(room, lane.index, e.product(place.index, int_of(wide)))
            e.store_float(e.load_float(e.at(source, place.index)), to)


def _compute(e: Emitter, given: Arguments, channels: Channels, room: Value, pixels: Sequence[Value]) -> None:
    registers = channels.registers
    windows = [window(e, given, pixel) for pixel in pixels]
    floats, step = given.geometry("segment_floats"), given.geometry("segment_step")
    sums = [e.zero] * (len(pixels) * registers)
    with e.loop(int_of(0), given.geometry("segments"), int_of(1), sums) as segment:
        inputs = [e.at(base, e.product(segment.index, step)) for base in windows]
        first = e.product(segment.index, floats)
        with e.loop(int_of(0), floats, int_of(1), segment.carried) as place:
            row = e.at(room, e.product(e.b.add(first, place.index), int_of(e.lanes * registers)))
            weights = [e.load(e.at(row, int_of(e.lanes * register))) for register in range(registers)]
            for number, base in enumerate(inputs):
                x = e.spread(e.load_float(e.at(base, place.index)))
                before = place.carried[number * registers : (number + 1) * registers]
                place.next += [e.fma(x, weight, total) for weight, total in zip(weights, before, strict=True)]
        segment.next = place.carried
    for number, pixel in enumerate(pixels):
        for register in range(registers):
            channels.write(pixel, register, segment.carried[number * registers + register])
