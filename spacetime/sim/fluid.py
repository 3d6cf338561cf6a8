"""The contention model, compiled: kernels as fluids whose rates change whenever a kernel begins or ends. Only engine.py
imports it.

A kernel launches (its serial part, during which it needs nothing of the device) and then works. Alone it works at the
pace of its arithmetic or of its traffic, whichever is slower. Beside others:

- Units. A kernel keeps some of its atoms busy for part of its time: that is its load. Where kernels share atoms, blocks
  go to whichever atom has room, so the mean load over a kernel's atoms counts. Above 1 they share the time, in
  proportion; and `Device.interference` is what somebody else's blocks on the same units cost even below.
- Bandwidth. Kernels that draw more than the device has are held to a common level for each unit's worth of what they
  could draw; those below it get what they need (max-min).
- Cache. The working sets of kernels at work displace each other from the last level once they exceed it, and what was
  displaced is fetched again: traffic grows by up to `Device.cache_penalty`.

A kernel that floats is placed when its launch is over. If it gets too few atoms it waits, in turn, for more.

Where a device has a bounded number of hardware queues, lanes beyond that share one. A queue's kernels are worked on one
after another, in the order in which they were launched, whoever they belong to.

Functions are given the arrays that they need one by one: a tuple of all would cost more than what they do.
Numba's cache knows when this file changes, but not masks.py and state.py: who edits those, touches this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spacetime.scheduler.masks import place
from spacetime.sim.state import BLOCKED, FREE, LAUNCH, LOAD_ONE, WAIT, WORK

LEAST_US = 1e-9  # no kernel works for less

Records = NDArray[Any]  # the types of state.py
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@njit(cache=True, error_model="numpy")
def advance(
    until_us: float,
    ended: Ints,
    device: Any,
    lanes: Records,
    steps: Records,
    active: Ints,
    queue: Ints,
    heads: Ints,
    atoms: Records,
    holders: NDArray[np.int32],
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
    table_us: Floats,
    table_busy: Ints,
) -> int:
    """Let time pass until a lane ends, or several at once: ended[:n] are their slots. None by then: 0."""
    while True:
        left_us = max(until_us - device.now_us, 0.0)
        step_us = min(left_us, _set_rates(device, lanes, active, atoms, regions, region_atoms))
        if step_us == np.inf:
            return 0
        _pass_time(step_us, device, lanes, active)
        if step_us == left_us:
            device.now_us = max(until_us, device.now_us)  # exactly, but time never goes back
        num_ended, num_left, num_due = 0, 0, 0
        for index in range(device.num_lanes):
            slot = active[index]
            lane = lanes[slot]
            if lane.due_us <= step_us:
                num_due += 1
                if lane.phase == WORK:
                    _end_work(lane, device, heads, atoms, holders, regions, region_atoms)
                    _begin_kernel(lane, steps[slot], holders, regions, region_atoms)
                elif lane.held < 0:
                    _enqueue(slot, lane, device, queue)
                else:
                    _launched(slot, lane, steps[slot], device, heads, atoms, regions, region_atoms, most_bytes_per_us)
            if lane.phase == FREE:
                ended[num_ended] = slot
                num_ended += 1
            else:
                active[num_left] = slot
                num_left += 1
        device.num_lanes = num_left
        if device.num_blocked > 0:
            _unblock(device, lanes, steps, active, heads, atoms, regions, region_atoms, most_bytes_per_us)
        _serve_queue(
            device,
            lanes,
            steps,
            queue,
            heads,
            atoms,
            holders,
            regions,
            region_atoms,
            most_bytes_per_us,
            table_us,
            table_busy,
        )
        if num_ended > 0 or num_due == 0:
            return num_ended


@njit(cache=True, error_model="numpy")
def _set_rates(
    device: Any, lanes: Records, active: Ints, atoms: Records, regions: Records, region_atoms: NDArray[np.int32]
) -> float:
    """How fast every lane is from now on. Returns for how long: until the first phase is over."""
    device.stamp += 1
    cache_bytes, displaces = device.cache_bytes, 0.0 < device.cache_bytes < device.working_set_bytes
    is_shared, drawn, first_us = device.shared_atoms > 0, 0.0, np.inf
    for index in range(device.num_lanes):
        lane = lanes[active[index]]
        if lane.phase == WORK:
            traffic, alone_us = float(lane.traffic_bytes), lane.alone_us
            if displaces:
                displaced = min(device.working_set_bytes - traffic, device.working_set_bytes - cache_bytes)
                traffic *= 1.0 + device.cache_penalty * min(1.0, displaced / cache_bytes)
                alone_us = max(alone_us, traffic / lane.most_bytes_per_us)
            lane.lasts_us = alone_us * lane.stretch
            if is_shared:
                lane.lasts_us *= _slowdown_by_sharing(lane, device, atoms, regions, region_atoms)
            lane.rate = 1.0 / lane.lasts_us
            lane.draws_bytes_per_us = traffic * lane.rate
            drawn += lane.draws_bytes_per_us
        lane.due_us = max(lane.remaining, 0.0) * lane.lasts_us
        first_us = min(first_us, lane.due_us)
    if drawn <= device.bytes_per_us:
        return first_us
    _share_bandwidth(device, lanes, active)
    first_us = np.inf
    for index in range(device.num_lanes):
        first_us = min(first_us, lanes[active[index]].due_us)
    return first_us


@njit(cache=True, error_model="numpy")
def _slowdown_by_sharing(
    lane: Any, device: Any, atoms: Records, regions: Records, region_atoms: NDArray[np.int32]
) -> float:
    """Lanes with the same atoms look them up once."""
    region = regions[lane.region]
    if region.seen_at != device.stamp:
        total = 0
        for index in range(region.num_atoms):
            total += atoms[region_atoms[lane.region, index]].load
        region.mean_load = total // region.num_atoms
        region.seen_at = device.stamp
    of_others = (region.mean_load - lane.load) / LOAD_ONE
    beside = 1.0 + device.interference * min(1.0, max(0.0, of_others))
    slowdown: float = max(1.0, region.mean_load / LOAD_ONE) * beside
    return slowdown


@njit(cache=True, error_model="numpy")
def _share_bandwidth(device: Any, lanes: Records, active: Ints) -> None:
    left, claims = device.bytes_per_us, 0.0
    for index in range(device.num_lanes):
        lane = lanes[active[index]]
        lane.is_fed = lane.phase != WORK
        claims += 0.0 if lane.is_fed else lane.most_bytes_per_us
    level, somebody_is_fed = 0.0, True
    while somebody_is_fed:
        level, somebody_is_fed = left / claims, False
        for index in range(device.num_lanes):
            lane = lanes[active[index]]
            if not lane.is_fed and lane.draws_bytes_per_us <= level * lane.most_bytes_per_us:
                lane.is_fed, somebody_is_fed = 1, True
                left -= lane.draws_bytes_per_us
                claims -= lane.most_bytes_per_us
    for index in range(device.num_lanes):
        lane = lanes[active[index]]
        if not lane.is_fed:
            slowdown = lane.draws_bytes_per_us / (level * lane.most_bytes_per_us)
            lane.lasts_us *= slowdown
            lane.rate /= slowdown
            lane.due_us *= slowdown


@njit(cache=True, error_model="numpy")
def _pass_time(step_us: float, device: Any, lanes: Records, active: Ints) -> None:
    device.now_us += step_us
    busy_atoms = min(device.busy_atoms, device.covered_atoms)
    is_whole = busy_atoms == device.num_atoms  # the units that fill no atom are busy too
    device.busy_unit_us += step_us * (device.num_units if is_whole else busy_atoms * device.units_per_atom)
    for index in range(device.num_lanes):
        lane = lanes[active[index]]
        lane.remaining -= step_us * lane.rate


@njit(cache=True, error_model="numpy")
def _begin_kernel(
    lane: Any, steps: Records, holders: NDArray[np.int32], regions: Records, region_atoms: NDArray[np.int32]
) -> None:
    """The lane's next kernel is launched; after the last one it lets go of its atoms."""
    lane.kernel += 1
    if lane.kernel < lane.num_kernels:
        lane.phase, lane.rate, lane.lasts_us = LAUNCH, 1.0, 1.0
        lane.remaining = steps[lane.kernel].serial_us * lane.stretch
        return
    lane.phase = FREE
    if lane.held >= 0:
        for index in range(regions[lane.held].num_atoms):
            holders[region_atoms[lane.held, index]] -= 1


@njit(cache=True, error_model="numpy")
def _launched(
    slot: int,
    lane: Any,
    steps: Records,
    device: Any,
    heads: Ints,
    atoms: Records,
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
) -> None:
    """The kernel of a lane that does not float works, or is blocked if it is not at the head of its hardware queue."""
    if device.hardware_queues == 0 or (device.num_blocked == 0 and heads[lane.hardware_queue] < 0):
        _work(slot, lane, steps, device, heads, atoms, regions, region_atoms, most_bytes_per_us)
        return
    lane.phase, lane.remaining, lane.rate, lane.lasts_us = BLOCKED, 1.0, 0.0, np.inf
    lane.blocked_at = device.blocks
    device.blocks += 1
    device.num_blocked += 1


@njit(cache=True, error_model="numpy")
def _unblock(
    device: Any,
    lanes: Records,
    steps: Records,
    active: Ints,
    heads: Ints,
    atoms: Records,
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
) -> None:
    """In every hardware queue without a head, the kernel that was launched first gets there."""
    while True:
        first = -1
        for index in range(device.num_lanes):
            slot = active[index]
            lane = lanes[slot]
            may_begin = lane.phase == BLOCKED and heads[lane.hardware_queue] < 0
            if may_begin and (first < 0 or lane.blocked_at < lanes[first].blocked_at):
                first = slot
        if first < 0:
            return
        device.num_blocked -= 1
        _work(first, lanes[first], steps[first], device, heads, atoms, regions, region_atoms, most_bytes_per_us)


@njit(cache=True, error_model="numpy")
def _work(
    slot: int,
    lane: Any,
    steps: Records,
    device: Any,
    heads: Ints,
    atoms: Records,
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
) -> None:
    """The kernel of a lane that does not float is at the head of its hardware queue."""
    if device.hardware_queues > 0:
        heads[lane.hardware_queue] = slot
    step = steps[lane.kernel]
    lane.region, lane.compute_us, lane.busy_atoms = step.region, step.compute_us, step.busy_atoms
    _begin_work(lane, step, device, atoms, regions, region_atoms, most_bytes_per_us)


@njit(cache=True, error_model="numpy")
def _enqueue(slot: int, lane: Any, device: Any, queue: Ints) -> None:
    lane.phase, lane.remaining, lane.rate, lane.lasts_us = WAIT, 1.0, 0.0, np.inf
    queue[(device.queue_head + device.queue_size) % queue.size] = slot
    device.queue_size += 1


@njit(cache=True, error_model="numpy")
def _serve_queue(
    device: Any,
    lanes: Records,
    steps: Records,
    queue: Ints,
    heads: Ints,
    atoms: Records,
    holders: NDArray[np.int32],
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
    table_us: Floats,
    table_busy: Ints,
) -> None:
    """Whoever came first is placed first; when there is too little for it, or its hardware queue has a head, the others

    wait too. Only kernels that work are heads: one that waited there would keep lanes from ending that hold its units.
    """
    while device.queue_size > 0:
        slot = queue[device.queue_head]
        lane, step = lanes[slot], steps[slot, lanes[slot].kernel]
        if device.hardware_queues > 0 and heads[lane.hardware_queue] >= 0:
            return
        if not _place(lane, step, device, holders, regions, region_atoms, table_us, table_busy):
            return
        device.queue_head = (device.queue_head + 1) % queue.size
        device.queue_size -= 1
        if device.hardware_queues > 0:
            heads[lane.hardware_queue] = slot
        _begin_work(lane, step, device, atoms, regions, region_atoms, most_bytes_per_us)


@njit(cache=True, error_model="numpy")
def _place(
    lane: Any,
    step: Any,
    device: Any,
    holders: NDArray[np.int32],
    regions: Records,
    region_atoms: NDArray[np.int32],
    table_us: Floats,
    table_busy: Ints,
) -> bool:
    """Give a floating kernel its atoms; False when there are too few for it."""
    own = lane.own_region
    granted = place(holders, device.num_groups, step.atoms, lane.order, lane.max_overlap, region_atoms[own])
    if granted < max(1, min(step.atoms, lane.least_atoms)):
        return False
    regions[own].num_atoms = granted
    for index in range(granted):
        holders[region_atoms[own, index]] += 1
    lane.region = own
    lane.compute_us, lane.busy_atoms = table_us[step.row, granted - 1], table_busy[step.row, granted - 1]
    return True


@njit(cache=True, error_model="numpy")
def _begin_work(
    lane: Any,
    step: Any,
    device: Any,
    atoms: Records,
    regions: Records,
    region_atoms: NDArray[np.int32],
    most_bytes_per_us: Floats,
) -> None:
    """On the atoms of `lane.region`."""
    num_atoms = regions[lane.region].num_atoms
    lane.phase, lane.remaining = WORK, 1.0
    lane.traffic_bytes, lane.most_bytes_per_us = step.traffic_bytes, most_bytes_per_us[num_atoms]
    lane.alone_us = max(lane.compute_us, lane.traffic_bytes / lane.most_bytes_per_us, LEAST_US)
    lane.load = int(LOAD_ONE * lane.busy_atoms / num_atoms * lane.compute_us / lane.alone_us)
    device.working_set_bytes += lane.traffic_bytes
    device.busy_atoms += lane.busy_atoms
    for index in range(num_atoms):
        atom = atoms[region_atoms[lane.region, index]]
        atom.load += lane.load
        atom.num_kernels += 1
        device.covered_atoms += atom.num_kernels == 1
        device.shared_atoms += atom.num_kernels == 2


@njit(cache=True, error_model="numpy")
def _end_work(
    lane: Any,
    device: Any,
    heads: Ints,
    atoms: Records,
    holders: NDArray[np.int32],
    regions: Records,
    region_atoms: NDArray[np.int32],
) -> None:
    if device.hardware_queues > 0:
        heads[lane.hardware_queue] = -1
    device.num_kernels += 1
    device.moved_bytes += lane.traffic_bytes
    device.working_set_bytes -= lane.traffic_bytes
    device.busy_atoms -= lane.busy_atoms
    for index in range(regions[lane.region].num_atoms):
        atom = atoms[region_atoms[lane.region, index]]
        atom.load -= lane.load
        atom.num_kernels -= 1
        device.covered_atoms -= atom.num_kernels == 0
        device.shared_atoms -= atom.num_kernels == 1
        if lane.held < 0:
            holders[region_atoms[lane.region, index]] -= 1
