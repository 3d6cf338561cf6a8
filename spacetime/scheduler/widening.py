"""What is left over goes where it helps most. Only `space_time` imports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from spacetime.device import Device
from spacetime.plan import RequestView
from spacetime.scheduler.arrangements import lane_units
from spacetime.scheduler.load import price
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import Chunk, lanes_us

LEAST_GAIN = 0.05  # of the lane's duration: less is within what estimates are wrong by
LEAST_LEFT = 1 / 8  # of the device: for less it is not worth looking
MOST_AREA = 1.2  # a wider lane takes at most so much of the narrow one's unit-time: others will want the units soon


@dataclass(slots=True, eq=False)
class Draft:
    """A lane that will start, before it has its atoms."""

    cohort: str
    chunks: list[Chunk]
    atoms: int
    fused: bool
    about_us: float  # what an average lane of its arrangement takes
    is_whole: bool = False  # on one partition from its start to its end, however long it takes

    @property
    def requests(self) -> tuple[RequestView, ...]:
        chunks = self.chunks
        return chunks[0][3] if len(chunks) == 1 else tuple([view for chunk in chunks for view in chunk[3]])

    @property
    def size(self) -> tuple[int, int]:
        """How many tenants, how many rows."""
        return len({chunk[2].name for chunk in self.chunks}), sum([chunk[0] for chunk in self.chunks])

    def lane_us(self, atoms: int, device: Device, costs: CostModel) -> float:
        (tenants, rows), units = self.size, lane_units(atoms, device)
        return costs.lane_us(self.cohort, tenants=tenants, rows=rows, units=units, fused=self.fused)


class _Widening(NamedTuple):
    """Sorted by what it gains, most first; then by lane."""

    negative_gain_us: float  # per atom
    lane: int
    more_atoms: int


def idle(draft: Draft) -> float:
    """Nobody else asks for anything."""
    return 0.0


def widen(
    drafts: list[Draft], num_left: int, device: Device, costs: CostModel, load_beside: Callable[[Draft], float] = idle
) -> int:
    """Give what is left to the lanes with the largest predicted gain per atom, as long as there is one.

    Returns what is left then.

    A lane that computes in waves may gain nothing from one more atom, and much from two: 1, 2, 4, ... are looked at,
    and all that is left. Who is widened without measure gains little, and leaves nothing to who comes next: the more
    come (`load_beside` a draft's cohort), the more a lane must gain.
    """
    if num_left < LEAST_LEFT * device.num_atoms:
        return num_left
    offers = [_widening(index, draft, num_left, device, costs, load_beside) for index, draft in enumerate(drafts)]
    queue = [offer for offer in offers if offer is not None]
    heapify(queue)
    while queue and num_left:
        _, index, more_atoms = heappop(queue)
        if more_atoms <= num_left:
            drafts[index].atoms += more_atoms
            num_left -= more_atoms
        offer = _widening(index, drafts[index], num_left, device, costs, load_beside)
        if offer is not None:
            heappush(queue, offer)
    return num_left


def _widening(
    index: int, draft: Draft, num_left: int, device: Device, costs: CostModel, load_beside: Callable[[Draft], float]
) -> _Widening | None:
    """The best way to widen the lane, if any gains enough."""
    if not num_left:
        return None
    (tenants, rows), fused, atoms = draft.size, draft.fused, draft.atoms
    steps = _steps(num_left)
    lanes = [(tenants, rows, lane_units(atoms + more_atoms, device), fused) for more_atoms in steps]
    lane_us, *prices = lanes_us(costs, draft.cohort, lanes)
    best, load = None, load_beside(draft)
    for more_atoms, wider_us in zip(steps[1:], prices, strict=True):
        gain_us = lane_us - wider_us
        if gain_us > lane_us * LEAST_GAIN and wider_us * (atoms + more_atoms) <= lane_us * atoms * MOST_AREA:
            if load and not _is_worth_it(draft, lane_us, atoms + more_atoms, wider_us, device, load):
                continue
            found = _Widening(-gain_us / more_atoms, index, more_atoms)
            best = found if best is None else min(best, found)
    return best


def _is_worth_it(draft: Draft, lane_us: float, wider_atoms: int, wider_us: float, device: Device, load: float) -> bool:
    """What its requests gain, against what the rest of the requests pay for it."""
    num_requests, num_atoms = sum([len(chunk[3]) for chunk in draft.chunks]), device.num_atoms

    def cost_us(atoms: int, us: float) -> float:
        return us * (num_requests + price(load, num_atoms / atoms) * atoms / num_atoms)

    return cost_us(wider_atoms, wider_us) < cost_us(draft.atoms, lane_us)


@lru_cache(maxsize=512)
def _steps(num_left: int) -> tuple[int, ...]:
    """By how many atoms a lane may grow; not at all, to begin with."""
    return (0, *sorted({*(1 << bit for bit in range(num_left.bit_length())), num_left}))
