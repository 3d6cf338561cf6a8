"""Case `overheads`: what the runtime itself costs: to decide, hand over, resize, move, add and remove."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from bench import lone
from bench.cases import Scale
from bench.decision import decisions_us
from bench.overheads_sides import (
    ADDING_KIN,
    ADDING_NEW,
    BEFORE,
    BETWEEN,
    NEWCOMERS,
    REMOVING,
    WINDOW_US,
    WITHIN,
    Changes,
    Changing,
    Handing,
    Moving,
    Resizing,
    Swaps,
)
from bench.results import Figure, Measurement
from bench.sides import Remote, Unavailable
from bench.traffic import Capable, lone_latencies_us, nearest_rank
from spacetime.scheduler.registry import policy_names

CASE = "overheads"
LOAD_WHILE_CHANGING = 0.2
RESIDENTS = 4
SMALL = "mlp"
LINEAR = "a linear layer of 8 x 8"

DECISION = Figure(
    CASE,
    "snapshot and policy",
    "us",
    "tenants of 8 cohorts, one request of 1..3 rows each, an idle null device of 8 units; costs learned from earlier "
    "lanes, at 1000 tenants from none; it is the host's time, whatever the device is",
)
SUBMIT = Figure(
    CASE,
    "host time of a submit",
    "us",
    f"until submit() of one row returns, the loop being idle: contract, queue, waking the loop; tenants of {LINEAR} on "
    "a null device",
)
PER_REQUEST = Figure(
    CASE,
    "host time of a request",
    "us",
    "one row of every tenant is submitted, then all results are awaited, by the number of requests: contract, queue, "
    f"decision, lane, future and the threads' hand-offs; tenants of {LINEAR} on a null device, the median of plain "
    "calls is taken off; under space_time it holds the time for which the first wait for their peers",
)
SWAP = Figure(
    CASE,
    "time to swap to another size",
    "us",
    "a policy asks for a resize while a closed loop of 4 requests runs; from the plan that asks to the first plan that "
    "sees the new size in force",
)
SWAP_GAP = Figure(
    CASE,
    "longest gap of service at a swap",
    "us",
    "between ends of requests in a closed loop of 4: the longest gap that ends after the plan that asks for a resize "
    "and begins no later than 50 ms after it; the longest ones in as long a time before are in the note",
)
MOVE = Figure(
    CASE,
    "change of partition between lanes",
    "us",
    "calls one at a time; every lane on the other half of the device's atoms, against all on the first half; in turns, "
    "block by block, differences of medians: another worker or stream, and weights that its caches have not seen",
)
MOVE_WITHIN = Figure(
    CASE,
    "change of partition within a lane",
    "us",
    "calls one at a time; every lane goes from the first half of the device's atoms to the other in its middle, "
    "against all on the first half; in turns, block by block, differences of medians",
)
CHANGED_METHOD = (
    f"p99 of {RESIDENTS} tenants under Poisson traffic at {LOAD_WHILE_CHANGING:.0%} of what lone calls can do, while "
    f"{NEWCOMERS} tenants of their cohort and one of a new architecture are added, then all removed, from another "
    "thread; requests count for what was going on when they were due"
)
CHANGING = {
    what: Figure(CASE, f"p99 of the others, {what}", "ms", CHANGED_METHOD)
    for what in (BEFORE, ADDING_KIN, ADDING_NEW, REMOVING)
}
CHANGE_TIME = {
    what: Figure(CASE, f"time of a change, {what}", "ms", f"of each add() or remove(); {CHANGED_METHOD}")
    for what in CHANGING
    if what != BEFORE
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it."""

    policies: tuple[str, ...]
    counts: tuple[int, ...]  # of tenants, for decisions
    num_decisions: int
    num_rounds: int
    num_swaps: int
    num_blocks: int
    calls_per_block: int
    changing_model: str
    newcomer_model: str
    before_s: float
    with_lone: bool = True

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        names = policy_names()
        if scale.smoke:
            return cls(("time_slice", "space_time"), (2, 8), 10, 5, 2, 2, 5, SMALL, "gru_cell", 0.3, with_lone=False)
        if scale.quick:
            return cls(names, (2, 8, 64, 1000), 50, 100, 10, 5, 20, "gru", "mlp", 2.0)
        return cls(names, (1, 2, 4, 8, 16, 32, 64, 256, 1000), 300, 500, 50, 15, 50, "resnet18", "bert", 10.0)


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    yield from _lone(scale, sizes)
    yield from _decisions(sizes)
    yield from _handing(sizes)
    for measure, figure in ((_swaps, SWAP), (_moves, MOVE), (_changes, CHANGING[BEFORE])):
        try:
            yield from measure(scale.device, sizes)
        except Unavailable as why:
            yield figure.unavailable(scale.device, str(why))


def _lone(scale: Scale, sizes: Sizes) -> Iterator[Measurement]:
    if scale.device != "cpu":
        yield replace(lone.OVERHEAD.unavailable(scale.device, "see case models, R = 1, on this device"), case=CASE)
    elif sizes.with_lone:
        yield from (replace(found, case=CASE) for found in lone.run(scale))


def _decisions(sizes: Sizes) -> Iterator[Measurement]:
    for count in sizes.counts:
        serve = count < 1000  # to learn the costs of so many takes longer than to decide
        for policy in sizes.policies:
            number = sizes.num_decisions if serve else max(3, sizes.num_decisions // 10)
            decided_us, _ = decisions_us(policy, number, count, serve=serve)
            yield DECISION.of(f"{policy}, {count} tenants", decided_us, axes={"policy": policy, "tenants": count})


def _handing(sizes: Sizes) -> Iterator[Measurement]:
    """Under the policies that differ most in what they hand over: one request a lane, and all in one."""
    for policy in ("time_slice", "space_time"):
        for count in (1, 8):
            with Remote(Handing, policy, count) as handing:
                handing.require()
                submit_us, round_us, plain_us = handing.call("rounds_us", sizes.num_rounds)
            axes: dict[str, str | int | float] = {"policy": policy, "tenants": count}
            note, subject = f"a plain call takes {plain_us:.1f} us", f"{policy}, rounds of {count}"
            yield SUBMIT.of(subject, submit_us, note, axes)
            yield PER_REQUEST.of(subject, [us / count - plain_us for us in round_us], note, axes)


# -- sizes and places ------------------------------------------------------------------------------------------------


def _num_atoms(device: str) -> int:
    with Remote(Capable, device) as capable:
        capable.require()
        found: int = capable.call("num_atoms")
        return found


def _swaps(device: str, sizes: Sizes) -> Iterator[Measurement]:
    if _num_atoms(device) < 2:
        raise Unavailable("the device has one atom: there is no other size")
    with Remote(Resizing, device, sizes.changing_model) as resizing:
        resizing.require()
        resizing.call("swaps", 2)  # executables of both sizes are made once
        swaps: Swaps = resizing.call("swaps", sizes.num_swaps)
    axes: dict[str, str | int | float] = {"model": sizes.changing_model}
    yield SWAP.of(sizes.changing_model, swaps.swap_us, f"{swaps.small_units} and {swaps.large_units} units", axes)
    usual_us, around_us = gaps_us(swaps)
    note = f"before a resize: median {median(usual_us):.0f} us, longest {max(usual_us):.0f} us"
    yield SWAP_GAP.of(sizes.changing_model, around_us, note, axes)


def gaps_us(swaps: Swaps) -> tuple[list[float], list[float]]:
    """The longest gap that ends in a window before a resize was asked for; and that ends after, and begins in another.

    Gaps count in full, however short the window is. Where no gap ended in the one before, the last one counts.
    """
    gaps = list(pairwise(swaps.ends_us))
    usual, around = [], []
    for asked_us in swaps.asked_us:
        before = [gap for gap in gaps if gap[1] <= asked_us]
        recent = [gap for gap in before if gap[1] > asked_us - WINDOW_US] or before[-1:]
        after = [gap for gap in gaps if gap[1] > asked_us and gap[0] < asked_us + WINDOW_US]
        usual.append(max((float(late - early) for early, late in recent), default=0.0))
        around.append(max((float(late - early) for early, late in after), default=0.0))
    return usual, around


def _moves(device: str, sizes: Sizes) -> Iterator[Measurement]:
    if _num_atoms(device) < 2:
        raise Unavailable("the device has one atom: there is no other place")
    for model in dict.fromkeys((SMALL, sizes.changing_model)):
        with Remote(Moving, device, model) as moving:
            moving.require()
            for figure, way in ((MOVE, BETWEEN), (MOVE_WITHIN, WITHIN)):
                if way == WITHIN and not moving.call("has_segments"):
                    yield figure.unavailable(model, "a lane keeps its partition on this device", {"model": model})
                    continue
                differences, still_us = moving.call("differences_us", way, sizes.num_blocks, sizes.calls_per_block)
                yield figure.of(
                    model, differences, f"a call without a change takes {median(still_us):.0f} us", {"model": model}
                )


# -- coming and going ------------------------------------------------------------------------------------------------


def _changes(device: str, sizes: Sizes) -> Iterator[Measurement]:
    model, newcomer = sizes.changing_model, sizes.newcomer_model
    lone_us = lone_latencies_us(device, (model,), 20)[model]
    with Remote(Changing, device, model, RESIDENTS, newcomer) as changing:
        changing.require()
        changing.call("warm_up", sizes.before_s)
        found: Changes = changing.call("changes", LOAD_WHILE_CHANGING * 1e6 / lone_us, sizes.before_s)
    axes: dict[str, str | int | float] = {"model": model, "newcomer": newcomer, "tenants": RESIDENTS}
    for what, figure in CHANGING.items():
        latencies = found.during(what)
        if latencies:
            its = f"{len(latencies)} requests in {found.seconds(what):.2f} s"
            yield figure.of(f"{RESIDENTS} x {model}", [nearest_rank(latencies, 0.99) / 1e3], its, axes)
        else:
            why = f"no request was due in the {found.seconds(what) * 1e3:.1f} ms that it took"
            yield figure.unavailable(f"{RESIDENTS} x {model}", why, axes)
        if what in CHANGE_TIME:
            yield CHANGE_TIME[what].of(f"{RESIDENTS} x {model}", found.changes_ms[what], "", axes)
