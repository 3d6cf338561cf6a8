"""Who makes shared lanes slow: found in bounded time, never by chance, readmitted when it keeps up."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.stragglers import MOST_OWN_LANES, OWN_LANES, TRIAL, WINDOW, Stragglers
from tests.scheduler.harness import World

TENANTS = ("a", "b", "c", "d", "e")
NOISE = 0.3  # sigma of the logarithm: one lane in three is off by more than a third

seeds = st.integers(0, 2**32 - 1)


class Lanes:
    """Lanes of random members of one cohort, that take longer when `slow` is among them."""

    def __init__(self, seed: int, share: float = 0.5, noise: float = NOISE) -> None:
        self.random = random.Random(seed)
        self.share = share
        self.noise = noise
        self.stragglers = Stragglers()

    def run(self, num_lanes: int, slow: Sequence[str] = (), factor: float = 3.0, until: bool = False) -> list[str]:
        """Who changed sides; stops at the first who does if `until`."""
        changes = []
        for _ in range(num_lanes):
            members = [name for name in TENANTS if self.random.random() < self.share] or ["a"]
            apart = [name for name in TENANTS if self.stragglers.slowdown(name)]
            lanes = [[name] for name in members if name in apart]
            shared = [name for name in members if name not in apart]
            for tenants in [*lanes, *([shared] if shared else [])]:
                us = 1000 * len(tenants) * self.random.lognormvariate(0.0, self.noise)
                us *= factor if set(slow) & set(tenants) else 1.0
                changed = self.stragglers.observe("cohort", len(tenants), tenants, us, 1000.0 * len(tenants))
                if changed is not None:
                    changes.append(changed)
                    if until:
                        return changes
        return changes


@given(seeds, st.sampled_from([0.2, 0.5, 0.8]))
def test_noise_evicts_nobody(seed: int, share: float) -> None:
    assert Lanes(seed, share).run(500) == []


@given(seeds, st.sampled_from(TENANTS), st.booleans())
def test_a_slow_tenant_is_found_in_bounded_time(seed: int, slow: str, was_fast: bool) -> None:
    lanes = Lanes(seed)
    if was_fast:
        assert lanes.run(WINDOW) == []
    assert lanes.run(2 * WINDOW, [slow], until=True) == [slow]
    assert lanes.stragglers.slowdown(slow) == pytest.approx(3.0, rel=0.5)
    assert lanes.stragglers.evictions(slow) == 1


@given(seeds)
def test_it_is_readmitted_when_it_recovers_and_not_before(seed: int) -> None:
    lanes = Lanes(seed)
    assert lanes.run(2 * WINDOW, ["c"], until=True) == ["c"]
    assert lanes.run(TRIAL * OWN_LANES // 2, ["c"]) == [], "half of its lanes are its own; a trial comes later"
    assert lanes.run(10 * OWN_LANES, until=True) == ["c"]
    assert lanes.stragglers.slowdown("c") == 0
    assert lanes.run(300) == [], "what it did before is forgotten"


def test_a_constant_straggler_gets_rarer_and_rarer_chances() -> None:
    lanes = Lanes(0)
    changes = lanes.run(20_000, ["b"])
    assert set(changes) == {"b"}
    assert 4 <= lanes.stragglers.evictions("b") <= 12
    assert TRIAL * MOST_OWN_LANES <= 20_000 / 2, "the lanes above are enough to get to the longest pause"


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_a_little_slower_is_no_straggler(factor: float) -> None:
    assert Lanes(1, noise=0.05).run(1000, ["a"], factor=factor) == []


def test_who_never_runs_without_the_straggler_is_not_told_from_it() -> None:
    stragglers = Stragglers()
    for _ in range(500):
        assert stragglers.observe("cohort", 2, ("a", "b"), 3000.0, 1000.0) is None


def test_cohorts_are_apart_from_each_other_and_leavers_are_forgotten() -> None:
    stragglers = Stragglers()
    for _ in range(500):
        assert stragglers.observe("slow", 1, ("a",), 3000.0, 1000.0) is None
        assert stragglers.observe("fast", 1, ("b",), 1000.0, 1000.0) is None
    lanes = Lanes(2)
    assert lanes.run(2 * WINDOW, ["e"], until=True) == ["e"]
    lanes.stragglers.forget("e")
    assert lanes.stragglers.slowdown("e") == 0 and lanes.stragglers.evictions("e") == 0


def test_the_loop_marks_a_straggler_reports_it_and_takes_it_back() -> None:
    slow = ["c"]
    world = World(latency_us=lambda lane: 3000 if set(slow) & set(lane.tenants) else 1000)
    for name in "abc":
        world.add(name, max_concurrency=4)
    chance = random.Random(3)

    def play(num_rounds: int) -> bool:
        for _ in range(num_rounds):
            for name in "abc":
                if chance.random() < 0.6:
                    world.submit(name)
            world.run()
            world.submit("c")
            view = next(tenant for tenant in world.scheduler.snapshot().tenants if tenant.name == "c")
            world.run()
            if view.apart:
                return True
        return False

    assert play(400)
    stats = world.scheduler.stats()
    assert (stats["c"]["apart"], stats["c"]["evictions"], stats["a"]["apart"]) == (True, 1, False)
    assert stats["c"]["slowdown"] > 1.5 and stats["a"]["slowdown"] == 0
    world.scheduler.remove_tenant("c")
    world.add("c")
    assert not world.scheduler.stats()["c"]["apart"]
