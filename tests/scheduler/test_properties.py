"""What every policy keeps in the loop, whatever happens: nothing is lost, nobody starves, nothing overlaps unasked."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import RejectedError
from spacetime.plan import Lane
from spacetime.scheduler.registry import policy_names
from tests.scheduler.harness import World

POLICIES = list(policy_names())
SHARING = {name for name in POLICIES if name == "streams" or "overlap" in name}  # uncontrolled by design
DEVICES = [Device("four", "null", 4), Device("atoms", "null", 132, 8), Device("groups", "null", 60, num_groups=4)]
TENANTS = [f"{cohort}{index}" for cohort in "xy" for index in range(3)] + ["odd0", "odd1"]

operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(TENANTS), st.integers(1, 80), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.sampled_from(TENANTS)),
        st.tuples(st.just("step"), st.integers(0, 400)),
    ),
    max_size=40,
)


class Broken(Exception):
    pass


class Life:
    """A world, what was sent into it, and what came of it."""

    def __init__(self, policy: str, device: Device) -> None:
        self.world = World(policy, device=device, latency_us=self.lane_us)
        self.sent: list[tuple[str, Any, Future[Any]]] = []
        self.present: set[str] = set()
        self.cancelled = 0
        self.isolated = policy not in SHARING
        self.seen: Counter[tuple[str, int]] = Counter()
        for index, name in enumerate(TENANTS):
            self.add(name, priority=index % 2, slo_us=None if index % 3 else 5_000)

    def add(self, name: str, **options: Any) -> None:
        fusible = not name.startswith("odd")
        cohort = name[0] if fusible else f"opaque:{name}"
        self.world.add(name, cohort, fusible=fusible, max_concurrency=3 if fusible else 1, **options)
        self.present.add(name)

    def lane_us(self, lane: Lane) -> int:
        """Called when a lane starts: the place to look at it."""
        self.seen.update((view.tenant, view.id) for view in lane.requests)
        if self.isolated:
            busy = 0
            for running in self.world.scheduler.snapshot().running:
                assert not running.atoms & busy, "two lanes on one atom"
                busy |= running.atoms
        return 20 + 3 * lane.num_rows

    def do(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("submit", name, rows, ok) if name in self.present:
                payload = len(self.sent) if ok else Broken()
                self.sent.append((name, payload, self.world.submit(name, rows, payload)))
            case ("cancel", index) if index < len(self.sent):
                self.cancelled += self.sent[index][2].cancel()
            case ("remove", name) if name in self.present:
                self.world.scheduler.remove_tenant(name)
                self.present.discard(name)
            case ("step", us):
                self.world.step()
                self.world.backend.advance(us)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_as_it_should(policy: str) -> None:
    @settings(max_examples=25)
    @given(operations, st.sampled_from(DEVICES))
    def check(operations: list[tuple[Any, ...]], device: Device) -> None:
        life = Life(policy, device)
        for operation in operations:
            life.do(operation)
        life.world.run()
        assert all(count == 1 for count in life.seen.values()), "a request ran twice"
        for name, payload, future in life.sent:
            assert future.done()
            try:
                error = future.exception()
            except CancelledError:
                continue
            if isinstance(error, RejectedError):
                assert name not in life.present
            elif isinstance(payload, Broken):
                assert error is payload
            else:
                assert future.result() == payload
        assert sum(future.cancelled() for *_, future in life.sent) == life.cancelled

    check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_nobody_starves_beside_a_flood(policy: str, device: Device) -> None:
    """One request each, of tenants with and without objectives, beside one that never has fewer than 20 waiting."""
    life = Life(policy, device)
    life.add("flood", slo_us=1_000, priority=0, weight=4.0)
    others = [(name, life.world.submit(name, 2, name)) for name in TENANTS]
    for _ in range(400):
        while life.world.scheduler.num_waiting < 20 + len(TENANTS):
            life.world.submit("flood", 1, "flood")
        life.world.step()
        life.world.backend.advance(50)
    waiting = [name for name, future in others if not future.done()]
    assert not waiting, f"still waiting after 400 rounds: {waiting}"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_life_twice_is_the_same(policy: str) -> None:
    @settings(max_examples=5)
    @given(operations)
    def check(operations: list[tuple[Any, ...]]) -> None:
        traces = []
        for _ in range(2):
            life = Life(policy, DEVICES[1])
            for operation in operations:
                life.do(operation)
            life.world.run()
            traces.append(life.world.scheduler.trace())
        assert traces[0] == traces[1]

    check()
