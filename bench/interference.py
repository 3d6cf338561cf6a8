"""Case `interference`: a victim's tail beside an aggressor, against the same victim in the same runtime left alone.

The two conditions take turns in blocks, with the same arrivals in both blocks of a pair, so that what the machine does
meanwhile hits both. How much the victim's p99 differs from pair to pair when nothing is different is printed as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.cases import Scale
from bench.results import Figure, Measurement
from bench.sides import Remote, Unavailable
from bench.traffic import (
    Played,
    Served,
    capabilities_of,
    lone_latencies_us,
    nearest_rank,
    open_traffic,
    policies,
)
from spacetime.workload import Resident

VICTIM, AGGRESSOR = "victim", "aggressor"
VICTIM_LOAD = 0.2  # of what calls one after another can do: it is far from disturbing itself
SLO_TIMES = 10.0
LONE_CALLS = 30

METHOD = (
    f"a victim with Poisson arrivals at {VICTIM_LOAD:.0%} of the rate of lone calls, one row each, beside an aggressor "
    "in a closed loop: a flood has {flood} requests of one row on their way at any time, a heavy model one; alone and "
    "beside it in turns, in blocks, with the same arrivals in both blocks of a pair; a process per policy; weights and "
    "priorities are equal; "
)
FLOOD_OUTSTANDING = 64
TOLD = METHOD.format(flood=FLOOD_OUTSTANDING)
MOVED = Figure(
    "interference",
    "victim's p99, beside over alone",
    "%",
    TOLD + "how much higher p99 of a block is than p99 of its pair, pair by pair",
    goal="flood: <= 50",
)
P50_MOVED = Figure(
    "interference", "victim's p50, beside over alone", "%", TOLD + "how much higher p50 of a block is, pair by pair"
)
ALONE = Figure("interference", "victim's p99 alone", "ms", TOLD + "block by block")
BESIDE = Figure("interference", "victim's p99 beside the aggressor", "ms", TOLD + "block by block")
UNMOVED = Figure(
    "interference",
    "victim's p99, alone over alone",
    "%",
    TOLD + "the noise of this measurement: every block alone over the one before, with other arrivals",
)
TAKEN = Figure("interference", "aggressor's throughput", "requests/s", TOLD + "block by block")


@dataclass(frozen=True, slots=True)
class Attack:
    """What the aggressor is and does."""

    name: str
    model: str
    outstanding: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it."""

    victim: str
    attacks: tuple[Attack, ...]
    with_slo: tuple[bool, ...]  # does the victim have one?
    num_pairs: int
    block_s: float
    warm_up_s: float
    ready_limit_s: float
    few_policies: bool = False
    only: tuple[str, ...] = ()  # none: all

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        if scale.smoke:
            flood = Attack("flood", "mlp", 8)
            return cls("mlp", (flood,), (False,), 2, 0.2, 0.1, 60, only=("time_slice", "space_time"))
        heavy = "resnet50"
        kin, stranger = Attack("flood of its kind", "gru", FLOOD_OUTSTANDING), Attack("flood", "mlp", FLOOD_OUTSTANDING)
        large = Attack("flood of a larger model", "resnet18", FLOOD_OUTSTANDING)
        if scale.quick:
            attacks = (kin, large, Attack("heavy", heavy, 1))
            return cls("gru", attacks, (True,), 3, 1.0, 1.0, 120, few_policies=True)
        return cls("gru", (kin, stranger, large, Attack("heavy", heavy, 1)), (False, True), 9, 3.0, 3.0, 300)


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    lone_us = lone_latencies_us(scale.device, (sizes.victim,), LONE_CALLS)[sizes.victim]
    for policy, why in policies(capabilities_of(scale.device), few=sizes.few_policies):
        if sizes.only and policy not in sizes.only:
            continue
        if why is not None:
            yield MOVED.unavailable(policy, why, {"policy": policy})
            continue
        for attack in sizes.attacks:
            for with_slo in sizes.with_slo:
                yield from meet(scale.device, sizes, policy, attack, lone_us, with_slo=with_slo)


def meet(
    device: str, sizes: Sizes, policy: str, attack: Attack, lone_us: float, *, with_slo: bool
) -> Iterator[Measurement]:
    """One victim and one aggressor."""
    slo_us = round(SLO_TIMES * lone_us) if with_slo else None
    tenants = (Resident(VICTIM, sizes.victim, slo_us), Resident(AGGRESSOR, attack.model))
    promise = f", SLO {slo_us / 1e3:.3g} ms" if slo_us else ""
    subject = f"{policy}, {sizes.victim} beside a {attack.name}{' with an SLO' if with_slo else ''}"
    axes = {
        "policy": policy,
        "victim": sizes.victim,
        "aggressor": attack.name,
        "aggressor_model": attack.model,
        "outstanding": attack.outstanding,
        "slo": "own" if with_slo else "none",
    }
    note = f"victim {sizes.victim}, lone {lone_us / 1e3:.3g} ms{promise}; {attack.outstanding} x {attack.model}"
    with Remote(Served, device, policy, tenants) as served:
        reason = served.why_not(sizes.ready_limit_s)
        if reason is not None:
            yield MOVED.unavailable(subject, reason, axes)
            return
        try:
            pairs = [_pair(served, tenants, sizes, attack, lone_us, seed) for seed in _warmed_up(served, sizes, attack)]
        except Unavailable as why:
            yield MOVED.unavailable(subject, str(why), axes)
            return
    alone, beside, taken = ([pair[part] for pair in pairs] for part in range(3))
    yield from figures(subject, alone, beside, note, axes)
    yield TAKEN.of(subject, taken, note, axes)


def _warmed_up(served: Remote, sizes: Sizes, attack: Attack) -> range:
    """The seeds of the pairs, once both have run beside each other for a while."""
    served.call("warm_up", sizes.warm_up_s, attack.outstanding)
    return range(sizes.num_pairs)


Pair = tuple[list[float], list[float], float]  # the victim's latencies alone and beside, the aggressor's requests/s


def _pair(served: Remote, tenants: Sequence[Resident], sizes: Sizes, attack: Attack, lone_us: float, seed: int) -> Pair:
    """The same arrivals alone and beside; which comes first changes from pair to pair."""
    victims = [tenant for tenant in tenants if tenant.name == VICTIM]
    workload = open_traffic(victims, VICTIM_LOAD * 1e6 / lone_us, sizes.block_s, "poisson", seed)
    found: dict[bool, Played] = {}
    taken = 0.0
    for under_attack in (False, True) if seed % 2 == 0 else (True, False):
        if under_attack:
            served.call("start_flood", (AGGRESSOR,), attack.outstanding)
        found[under_attack] = served.call("play", workload, sizes.block_s)
        if under_attack:
            counts: dict[str, int] = served.call("stop_flood")
            taken = counts[AGGRESSOR] / found[True].duration_us * 1e6
    return found[False].all_us, found[True].all_us, taken


def figures(
    subject: str,
    alone: Sequence[Sequence[float]],
    beside: Sequence[Sequence[float]],
    note: str,
    axes: dict[str, str | int | float],
) -> Iterator[Measurement]:
    """Of the latencies of blocks in pairs."""
    p99, p50 = ([[nearest_rank(b, part) for b in blocks] for blocks in (alone, beside)] for part in (0.99, 0.5))
    if not any(map(math.isinf, p99[0])):
        yield ALONE.of(subject, [us / 1e3 for us in p99[0]], note, axes)
        if len(p99[0]) > 1:
            yield UNMOVED.of(subject, percent(p99[0][:-1], p99[0][1:]), note, axes)
    if any(map(math.isinf, (*p99[0], *p99[1]))):
        lost = " and ".join(f"{_share_lost(its):.1%} {how}" for its, how in ((alone, "alone"), (beside, "beside")))
        why = f"the victim starves: of its requests {lost} did not even start within a block's time; {note}"
        yield MOVED.unavailable(subject, why, axes)
        return
    told = f"p99 {median(p99[0]) / 1e3:.3g} ms alone, {median(p99[1]) / 1e3:.3g} ms beside; {note}"
    yield MOVED.of(subject, percent(*p99), told, axes)
    yield P50_MOVED.of(subject, percent(*p50), note, axes)
    yield BESIDE.of(subject, [us / 1e3 for us in p99[1]], note, axes)


def _share_lost(blocks: Sequence[Sequence[float]]) -> float:
    return sum(math.isinf(us) for block in blocks for us in block) / max(1, sum(map(len, blocks)))


def percent(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """How much higher, in percent."""
    return [100 * (late / early - 1) for early, late in zip(before, after, strict=True)]
