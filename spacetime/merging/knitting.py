"""Joins steps that no dependency keeps apart, whatever order they stand in. merging/ only.

Who comes before whom is kept as one bit per step in Python's integers: a question about all steps is one operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from spacetime.ir import Program
from spacetime.merging.graph import Kinds, Node


class Knot:
    """A step in the making: kernels of these keys; the first of them is what others are matched with."""

    __slots__ = ("key", "keys", "nodes")

    def __init__(self, key: int, nodes: Sequence[Node]) -> None:
        self.key = key
        self.keys = {key}
        self.nodes = list(nodes)

    def absorb(self, other: Knot) -> None:
        if other.key != self.key or len(other.keys) > 1:
            self.keys |= other.keys
        self.nodes += other.nodes


def knit(knots: Sequence[Knot], programs: Sequence[Program], kinds: Kinds) -> list[Knot]:
    """The same kernels in fewer steps, in an order in which they can run, as `knots` are. These are used up."""
    needs = _needs(knots, programs)
    net = _Net(knots, needs)
    _join_equal(net, kinds)
    _join_alike(net, kinds)
    return _in_order(net, needs)


def _needs(knots: Sequence[Knot], programs: Sequence[Program]) -> list[set[int]]:
    """The steps that each step reads from."""
    at = [[0] * len(program.kernels) for program in programs]
    for index, knot in enumerate(knots):
        for member, kernel in knot.nodes:
            at[member][kernel] = index
    return [
        {at[member][dep] for member, kernel in knot.nodes for dep in programs[member].kernels[kernel].deps}
        for knot in knots
    ]


class _Net:
    """Steps and who is before and after them. A step that joined another keeps its bit beside that one's."""

    def __init__(self, knots: Sequence[Knot], needs: Sequence[set[int]]) -> None:
        self.knots = list(knots)
        self.alive = (1 << len(knots)) - 1
        self.into = list(range(len(knots)))
        self.members = [_mask(member for member, _ in knot.nodes) for knot in knots]
        self.before = [0] * len(knots)
        self.after = [0] * len(knots)
        for step, needed in enumerate(needs):
            for earlier in needed:
                self.before[step] |= self.before[earlier] | 1 << earlier
        for step in range(len(knots) - 1, -1, -1):
            for earlier in needs[step]:
                self.after[earlier] |= self.after[step] | 1 << step

    def independent(self, step: int, among: int) -> int:
        """Those of `among` that neither wait for the step nor are waited for."""
        return among & self.alive & ~(self.before[step] | self.after[step] | 1 << step)

    def join(self, step: int, other: int) -> None:
        self.knots[step].absorb(self.knots[other])
        self.members[step] |= self.members[other]
        self.into[other] = step
        self.alive &= ~(1 << other)
        both = 1 << step | 1 << other
        before = self.before[step] = self.before[step] | self.before[other]
        after = self.after[step] = self.after[step] | self.after[other]
        for later in _bits(after & self.alive):
            self.before[later] |= before | both
        for earlier in _bits(before & self.alive):
            self.after[earlier] |= after | both


def _join_equal(net: _Net, kinds: Kinds) -> None:
    """What gains most first; then from front to back, each with the nearest that fits."""
    by_key: dict[int, list[int]] = {}
    for step, knot in enumerate(net.knots):
        by_key.setdefault(knot.key, []).append(step)
    several = [key for key, steps in by_key.items() if len(steps) > 1 and kinds.shared[key] > 0]
    for key in sorted(several, key=lambda key: (-kinds.shared[key], key)):
        among = _mask(by_key[key])
        for step in by_key[key]:
            _join_nearest(net, step, among >> step << step, kinds)


def _join_alike(net: _Net, kinds: Kinds) -> None:
    """Groups of unlike shapes, from what is left."""
    by_key: dict[int, int] = {}
    for step in _bits(net.alive):
        key = net.knots[step].key
        by_key[key] = by_key.get(key, 0) | 1 << step
    for key in sorted(by_key):
        gains = kinds.gains_with(key)
        gains[key] = 0.0
        for other in sorted(np.flatnonzero(gains).tolist(), key=lambda other: (-gains[other], other)):
            for step in _bits(by_key[key] & net.alive):
                _join_nearest(net, step, by_key.get(other, 0), kinds)


def _join_nearest(net: _Net, step: int, among: int, kinds: Kinds) -> None:
    while net.alive >> step & 1:
        candidates = net.independent(step, among)
        if not kinds.joins_siblings(net.knots[step].key):
            candidates = _mask(other for other in _bits(candidates) if not net.members[step] & net.members[other])
        if not candidates:
            return
        net.join(step, min(_bits(candidates), key=lambda other: (abs(other - step), other)))


def _in_order(net: _Net, needs: Sequence[set[int]]) -> list[Knot]:
    """Of all steps that can run, the one that stood first."""
    waits: dict[int, set[int]] = {step: set() for step in _bits(net.alive)}
    readers: dict[int, set[int]] = {step: set() for step in waits}
    root = [_root(net.into, step) for step in range(len(needs))]
    for step, needed in enumerate(needs):
        for earlier in needed:
            waits[root[step]].add(root[earlier])
            readers[root[earlier]].add(root[step])
    ready = [step for step, needed in waits.items() if not needed]
    heapify(ready)
    ordered = []
    while ready:
        step = heappop(ready)
        ordered.append(net.knots[step])
        for reader in readers[step]:
            waits[reader].discard(step)
            if not waits[reader]:
                heappush(ready, reader)
    assert len(ordered) == len(waits), "joined steps wait for each other"
    return ordered


def _root(into: Sequence[int], step: int) -> int:
    while into[step] != step:
        step = into[step]
    return step


def _mask(bits: Iterator[int] | Sequence[int]) -> int:
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
