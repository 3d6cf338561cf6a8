"""Resizes: prepared while the old size serves, then in force; whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spacetime.backends.null import NullBackend
from spacetime.errors import PlanError, RejectedError
from spacetime.plan import Lane, Plan, Resize, Segment, Snapshot, TenantView
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Executable
from tests.scheduler.harness import CORES, Echo, World


class Slow(NullBackend):
    """Prepares when the test says so; or never could."""

    def __init__(self) -> None:
        super().__init__(CORES, latency_us=100)
        self.preparing: list[tuple[str, int, Callable[[], None]]] = []
        self.broken = False

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        if self.broken:
            raise MemoryError("no room for another executable")
        self.preparing.append((cohort, units, ready))


class Resizing(World):
    """Serves `a` one request at a time on the whole device, and resizes as the test says."""

    def __init__(self, backend: NullBackend | None = None) -> None:
        super().__init__(latency_us=100)
        self.backend = backend or self.backend
        self.wanted: tuple[Resize, ...] = ()
        self.seen: list[TenantView] = []
        self.scheduler = Scheduler(self.backend, self._decide, self.costs, self.posted.append)
        self.add("a")

    def _decide(self, snapshot: Snapshot, costs: CostModel) -> Plan:
        (tenant,) = snapshot.tenants
        self.seen.append(tenant)
        lane = Lane("cohort", tenant.waiting[:1], (Segment(CORES.whole),), fused=True)
        return Plan(() if tenant.running else (lane,), resizes=self.wanted)

    def serve(self, *resizes: Resize) -> TenantView:
        """One request; what the policy saw of the tenant when it was planned."""
        self.wanted = resizes
        self.submit("a")
        self.run()
        return self.seen[-1]

    @property
    def num_resizes(self) -> tuple[int, int]:
        books = self.scheduler.stats()["a"]
        return int(books["resizes"]), int(books["failed_resizes"])


def test_a_size_is_in_force_at_the_next_plan_when_nothing_needs_to_be_made() -> None:
    world = Resizing()
    view = world.serve(Resize("a", 2))
    assert (view.share_units, view.resizing) == (None, False), "the policy has only just asked"
    view = world.serve()
    assert (view.share_units, view.resizing) == (2, False) and 0 < view.share_since_us < world.backend.now_us()
    assert world.num_resizes == (1, 0)


def test_the_old_size_serves_until_the_new_one_is_ready() -> None:
    backend = Slow()
    world = Resizing(backend)
    world.serve(Resize("a", 2))
    for _ in range(5):
        view = world.serve(Resize("a", 2))  # asked again: it is on its way
        assert (view.share_units, view.resizing) == (None, True)
    ((cohort, units, ready),) = backend.preparing
    assert (cohort, units) == ("cohort", 2)
    ready()
    view = world.serve(Resize("a", 2))
    assert (view.share_units, view.resizing) == (2, False)
    assert len(backend.preparing) == 1, "what is in force is not prepared again"
    assert world.scheduler.stats()["a"]["completed"] == 7, "nobody waited for it"


def test_the_last_wish_counts() -> None:
    backend = Slow()
    world = Resizing(backend)
    world.serve(Resize("a", 2))
    world.serve(Resize("a", 3))
    (_, _, first), (_, _, second) = backend.preparing
    second()
    first()
    assert world.serve().share_units == 3 and world.num_resizes == (1, 0)


def test_a_tenant_may_leave_while_its_size_is_prepared() -> None:
    backend = Slow()
    world = Resizing(backend)
    world.serve(Resize("a", 2))
    world.scheduler.remove_tenant("a").result(0)
    world.add("a")
    backend.preparing[0][2]()
    assert world.serve().share_units is None, "the new tenant of that name has no size yet"


def test_another_cohort_forgets_the_size() -> None:
    backend = Slow()
    world = Resizing(backend)
    world.serve(Resize("a", 2))
    backend.preparing[0][2]()
    world.serve(Resize("a", 3))
    spec = world.specs["a"]
    world.scheduler.replace_tenant(type(spec)("a", spec.cohort, weight=2.0), Echo())
    view = world.serve()
    assert (view.share_units, view.resizing, view.weight) == (2, True, 2.0), "other limits change nothing"
    world.costs.register("elsewhere", None, CORES)
    world.scheduler.replace_tenant(type(spec)("a", "elsewhere"), Echo())
    world.posted.clear()
    backend.preparing[1][2]()
    world.posted.popleft()()
    world.submit("a")
    (view,) = world.scheduler.snapshot().tenants
    assert (view.share_units, view.resizing) == (None, False)


def test_an_abandoned_resize_stays_forgotten() -> None:
    backend = Slow()
    world = Resizing(backend)
    world.serve(Resize("a", 2))
    world.scheduler.abandon(RejectedError("interrupted"))
    assert not world.serve().resizing
    backend.preparing[0][2]()
    assert world.serve().share_units is None


def test_what_cannot_be_prepared_leaves_the_old_size_and_is_not_tried_again() -> None:
    backend = Slow()
    world = Resizing(backend)
    backend.broken = True
    for _ in range(3):
        view = world.serve(Resize("a", 2))
        assert (view.share_units, view.resizing) == (None, False)
    assert world.num_resizes == (0, 1)
    backend.broken = False
    world.serve(Resize("a", 3))
    assert [units for _, units, _ in backend.preparing] == [3]


@pytest.mark.parametrize(
    ("resizes", "problem"),
    [
        ((Resize("b", 2),), "tenant 'b' cannot be resized"),
        ((Resize("a", 0),), "tenant 'a' cannot have 0 units"),
        ((Resize("a", 5),), "the device has 4"),
        ((Resize("a", 1), Resize("a", 2)), "resized twice"),
    ],
)
def test_a_resize_that_cannot_be_is_an_error_of_the_policy(resizes: tuple[Resize, ...], problem: str) -> None:
    world = Resizing()
    world.wanted = resizes
    future = world.submit("a")
    world.run()
    error = future.exception(0)
    assert isinstance(error, PlanError) and problem in error.facts
    assert len(error.facts.splitlines()) == 3, "what is wrong with the plan is said with its facts and a next step"
    assert world.num_resizes == (0, 0)
