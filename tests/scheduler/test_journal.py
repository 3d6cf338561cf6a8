"""Recorded decisions replay identically: of random worlds, and in another process. What differs is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.errors import PlanError
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.journal import Entry, Journal, replay
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import get_policy, policy_names
from tests.scheduler.recorded import RecordedWorld, assert_replays

SHIPPED = [name for name in policy_names() if get_policy(name).__module__.startswith("spacetime.")]


# -- random worlds ------------------------------------------------------------------------------------

TENANTS = ("a", "b", "c", "d")
COHORTS = {"a": "x", "b": "x", "c": "x", "d": "y"}

tenants = st.sampled_from(TENANTS)
COMMON = st.one_of(
    st.tuples(st.just("submit"), tenants, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("submit"), tenants, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("submit_and_cancel"), tenants),
    st.tuples(st.just("advance"), st.integers(1, 400)),
    st.tuples(st.just("advance"), st.integers(1, 40)),
    st.tuples(st.just("look")),
)
RARE = st.one_of(
    st.tuples(st.just("remove"), tenants),
    st.tuples(st.just("add"), tenants, st.integers(1, 3)),
    st.tuples(st.just("reject")),
    st.tuples(st.just("break_device")),
    st.tuples(st.just("close"), st.booleans()),
)
OPERATIONS = st.builds(
    lambda *parts: [operation for part in parts for operation in part],
    st.lists(COMMON, min_size=15, max_size=40),
    st.lists(RARE, max_size=2),
    st.lists(COMMON, max_size=20),
    st.lists(RARE, max_size=2),
    st.lists(COMMON, max_size=10),
)


class Player:
    """Performs operations; those that cannot be are errors of the scheduler, recorded like the rest."""

    def __init__(self, world: RecordedWorld) -> None:
        self.world = world

    def play(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self, name)(*arguments)
        except Exception as error:
            assert type(error).__module__ == "spacetime.errors", error

    def add(self, tenant: str, max_concurrency: int = 2) -> None:
        slo_us = 500 if tenant == "b" else None
        fusible = tenant != "d"
        options = {"slo_us": slo_us, "fusible": fusible, "max_concurrency": max_concurrency, "max_queue": 6}
        self.world.add(tenant, COHORTS[tenant], **options)

    def remove(self, tenant: str) -> None:
        self.world.scheduler.remove_tenant(tenant)

    def submit(self, tenant: str, rows: int, fails: bool) -> None:
        payload = ValueError("of the tenant's own") if fails else None
        self.world.submit(tenant, rows, payload)

    def submit_and_cancel(self, tenant: str) -> None:
        self.world.submit(tenant).cancel()

    def advance(self, us: int) -> None:
        self.world.backend.advance(us)
        self.world.step()

    def look(self) -> None:
        self.world.scheduler.snapshot()

    def close(self, drain: bool) -> None:
        self.world.scheduler.close(drain)

    def reject(self) -> None:
        self.world.scheduler.reject_waiting(PlanError("enough"))

    def break_device(self) -> None:
        """The device is gone: what is started from now on is refused."""
        self.world.backend.close()


def latency_us(lane: Lane) -> int:
    """Some lanes end at once, others do not."""
    return lane.requests[0].id * 37 % 5 * 60


@pytest.mark.parametrize("policy", SHIPPED)
@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_any_world_replays_identically(policy: str, operations: list[tuple[Any, ...]]) -> None:
    world = RecordedWorld(policy, latency_us=latency_us)
    player = Player(world)
    for tenant in TENANTS:
        player.play("add", tenant)
    for name, *arguments in operations:
        player.play(name, *arguments)
    for _ in range(10):
        player.advance(100)
    assert_replays(world.journal())


# -- what a replay notices ----------------------------------------------------------------------------


@pytest.fixture
def journal() -> Journal:
    """Three tenants that fuse, twelve requests; several decisions."""
    world = RecordedWorld("space_time")
    for tenant in "abc":
        world.add(tenant)
    for number in range(12):
        world.submit("abc"[number % 3])
        if number % 3 == 2:
            world.step()
            world.backend.advance(30)
    world.run()
    journal = world.journal()
    assert len(journal.plans) >= 3 and any(len(lane.tenants) == 3 for plan in journal.plans for lane in plan.lanes)
    return journal


def test_the_same_policy_makes_the_same_plans(journal: Journal) -> None:
    assert journal.policy == "space_time"
    assert_replays(journal)


def test_another_policy_is_followed_to_its_first_difference(journal: Journal) -> None:
    again = replay(journal, "time_slice")
    assert again.difference is not None
    assert again.difference.decision == 0
    assert again.plans == (again.difference.replayed,)
    assert again.difference.recorded == journal.plans[0]
    text = str(again.difference)
    assert "policy 'time_slice' decides otherwise" in text
    assert "recorded: cohort of a+b+c, 3 rows, atoms 0xf, fused" in text
    assert "replayed: cohort of a, 1 rows, atoms 0xf, plain" in text


def test_a_policy_that_is_no_function_of_what_it_sees_is_found_out() -> None:
    calls = []

    def moody(snapshot: Snapshot, costs: CostModel) -> Plan:
        calls.append(snapshot)
        waiting = snapshot.tenants[0 if len(calls) <= 3 else -1]
        return Plan((Lane(waiting.cohort, waiting.waiting[:1], (Segment(snapshot.device.whole),), False),))

    world = RecordedWorld(moody)
    for tenant in "ab":
        world.add(tenant)
        world.submit(tenant)
        world.submit(tenant)
    world.run()
    again = replay(world.journal(), moody)
    assert again.difference is not None and again.difference.decision == 0


def edit(journal: Journal, call: str, change: Callable[[Entry], Entry | None], which: int = 0) -> Journal:
    """The journal with one of its entries of this kind changed, or (None) left out."""
    places = [i for i, entry in enumerate(journal.entries) if entry.call == call]
    place = places[which]
    changed = change(journal.entries[place])
    kept = (changed,) if changed is not None else ()
    return replace(journal, entries=journal.entries[:place] + kept + journal.entries[place + 1 :])


LOST_CLOCK: Callable[[Entry], Entry] = lambda entry: replace(entry, clock_us=entry.clock_us[:-1])  # noqa: E731


@pytest.mark.parametrize(
    ("call", "change", "problem"),
    [
        ("submit", lambda entry: None, "decides otherwise"),
        ("submit", lambda entry: replace(entry, argument=replace(entry.argument, rows=2)), "decides otherwise"),
        ("submit", lambda entry: replace(entry, cancelled=((entry.argument.tenant, entry.argument.id),)), ""),
        ("lane", lambda entry: None, "decides otherwise|less often|more often|fewer|not recorded"),
        ("lane", lambda entry: replace(entry, argument=replace(entry.argument, job=99)), "job 99 was never started"),
        ("lane", LOST_CLOCK, "lane|the clock was read more often"),
        ("step", LOST_CLOCK, "the clock was read more often"),
        ("step", lambda entry: replace(entry, clock_us=(*entry.clock_us, 5)), "step read the clock less often"),
        ("step", lambda entry: replace(entry, plans=()), "a decision was made that is not recorded"),
        ("step", lambda entry: replace(entry, plans=(*entry.plans, Plan())), "step made fewer decisions"),
        ("step", lambda entry: replace(entry, error="PlanError"), "no error, recorded was PlanError"),
        ("step", lambda entry: replace(entry, refused=(0,)), "the clock was read more often"),
        ("step", lambda entry: replace(entry, call="leap"), "this version knows no call 'leap'"),
        ("step", lambda entry: replace(entry, call="post", argument=3), "function 3 was never posted"),
        ("add_tenant", lambda entry: None, "decides otherwise"),
    ],
)
def test_a_journal_that_was_tampered_with_is_found_out(
    journal: Journal, call: str, change: Callable[[Entry], Entry | None], problem: str
) -> None:
    again = replay(edit(journal, call, change))
    if not problem:
        assert again.difference is None, "who was cancelled matters only where the scheduler asked"
        return
    assert again.difference is not None
    assert re.search(problem, again.difference.problem), again.difference


def test_cohorts_that_nobody_registered_make_the_policy_fail(journal: Journal) -> None:
    again = replay(replace(journal, entries=tuple(entry for entry in journal.entries if entry.call != "register")))
    assert again.difference is not None and again.difference.replayed is None
    assert "replayed: no plan" in str(again.difference)


# -- another process ---------------------------------------------------------------------------------

REPLAY = """
import sys
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import Journal, replay
again = replay(Journal.from_json(sys.stdin.read()))
sys.exit(str(again.difference) if again.difference else 0)
"""


def test_another_process_makes_the_same_plans(journal: Journal) -> None:
    """Where hashes are seeded otherwise, so that nothing depends on the order of a set."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=journal.to_json(),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
