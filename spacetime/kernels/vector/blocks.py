"""How kernels go through their work: blocks of channels of an entry, tiles of pixels, channels in lanes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.call import Arguments
from spacetime.kernels.vector.emitter import Emitter, Value, int_of


@dataclass(frozen=True, slots=True)
class Block:
    """Work for one entry: some channels, from `first`, and a chunk of the output pixels of its rows."""

    entry: Value
    weights: Value  # where those of the entry lie
    first: Value
    last: Value  # channel that is no longer the thread's
    begin: Value
    end: Value


@contextmanager
def over_blocks(e: Emitter, given: Arguments, thread: Value, threads: Value, step: int) -> Iterator[Block]:
    """For all runs of rows and the thread's share of the channels: no two threads write to one block."""
    channels = given.geometry("channels")
    blocks = e.b.sdiv(e.b.add(channels, int_of(step - 1)), int_of(step))
    each = e.b.mul(e.b.sdiv(e.b.sub(e.b.add(blocks, threads), int_of(1)), threads), int_of(step))
    first = e.b.mul(thread, each)
    last = e.least(e.b.add(first, each), channels)
    pixels = e.product(given.geometry("images"), given.geometry("pixels"))
    with e.loop(int_of(0), given["num_runs"], int_of(1)) as run:
        entry, start, count = given.run(run.index)
        begin = e.product(start, pixels)
        end = e.sum(begin, e.product(count, pixels))
        floats = e.product(channels, given.geometry("weights"))
        weights = e.choose(
            e.b.icmp_signed("!=", given["places"], int_of(0)),
            lambda: [e.load_int(given["places"], run.index)],
            [e.at(given["weight"], e.product(entry, floats))],
        )[0]
        with e.loop(begin, end, given.geometry("chunk")) as part:
            stop = e.least(e.b.add(part.index, given.geometry("chunk")), end)
            with e.loop(first, last, int_of(step)) as block:
                yield Block(entry, weights, block.index, last, part.index, stop)


@contextmanager
def tiles(e: Emitter, begin: Value, end: Value, size: int) -> Iterator[list[Value]]:
    """A few pixels at a time. Where there are not so many left, the last one repeats."""
    with e.loop(begin, end, int_of(size)) as some:
        yield within(e, some.index, size, end)


def within(e: Emitter, first: Value, number: int, end: Value) -> list[Value]:
    last = e.b.sub(end, int_of(1))
    return [e.least(e.b.add(first, int_of(offset)), last) for offset in range(number)]


class Channels:
    """`registers` times as many channels of one entry as there are lanes, from `first`; or those that are left."""

    def __init__(self, e: Emitter, given: Arguments, block: Block, registers: int = 1) -> None:
        self.e, self.given, self.registers, self.first = e, given, registers, block.first
        first = block.first
        self.number = given.geometry("channels")
        self.left = e.b.sub(self.number, first)
        self.firsts = [e.b.add(first, int_of(e.lanes * register)) for register in range(registers)]
        self.masks = [e.mask(e.b.sub(self.number, place)) for place in self.firsts]
        self.begin = e.b.add(e.product(block.entry, self.number), first)
        self.scales, self.shifts = self._vectors("scale", 1.0), self._vectors("shift", 0.0)

    def _vectors(self, name: str, default: float) -> list[Value]:
        e, base = self.e, self.given[name]
        constants = [ir.Constant(e.vector, [default] * e.lanes)] * self.registers
        begins = [e.at(base, self.begin, int_of(e.lanes * register)) for register in range(self.registers)]
        present = e.b.icmp_signed("!=", base, int_of(0))
        return e.choose(present, lambda: [e.load(*place) for place in zip(begins, self.masks, strict=True)], constants)

    def write(self, pixel: Value, register: int, total: Value) -> None:
        """Scale, shift, activation, and out."""
        e = self.e
        low, high = (e.spread(bound) for bound in self.given.bounds())
        value = e.clamp(e.fma(total, self.scales[register], self.shifts[register]), low, high)
        to = e.at(self.given["y"], e.product(pixel, self.number), self.firsts[register])
        e.store(value, to, self.masks[register])


def window(e: Emitter, given: Arguments, pixel: Value) -> Value:
    """Where the first segment of an output pixel's window begins."""
    image_pixels, width = given.geometry("pixels"), given.geometry("width")
    image = e.b.sdiv(pixel, image_pixels)
    inside = e.b.sub(pixel, e.b.mul(image, image_pixels))
    line = e.b.sdiv(inside, width)
    column = e.b.sub(inside, e.b.mul(line, width))
    steps = zip((image, line, column), ("image_floats", "line_step", "pixel_step"), strict=True)
    return e.at(given["x"], *(e.product(number, given.geometry(step)) for number, step in steps))
