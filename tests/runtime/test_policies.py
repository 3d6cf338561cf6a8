"""Policies in a runtime: one's own, broken ones, and that all of them give the same results."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn
from torch.utils import _pytree as pytree

import spacetime as st
from spacetime.capture.selfcheck import magnitude
from spacetime.scheduler import registry
from spacetime.zoo import build, example
from tests.runtime.models import EXAMPLE, PATIENCE_S, Branching, X, assert_equal, assert_three_parts, plain, tiny


@pytest.fixture
def own_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_policies", dict(registry._policies))


@pytest.mark.usefixtures("own_policies")
def test_a_users_policy_runs() -> None:
    seen: list[int] = []

    @st.policy("youngest_first")
    def youngest_first(snapshot: st.Snapshot, costs: st.CostModel) -> st.Plan:
        if snapshot.running:
            return st.Plan()
        tenant = max(snapshot.tenants, key=lambda tenant: tenant.waiting[-1].arrival_us)
        request = tenant.waiting[-1]
        seen.append(request.id)
        whole = st.Segment(snapshot.device.whole)
        return st.Plan((st.Lane(tenant.cohort, (request,), (whole,), fused=tenant.fusible),))

    module = tiny()
    expected = plain(module, X)
    with st.Runtime(policy="youngest_first") as rt:
        tenant, odd = rt.add(module, EXAMPLE, "t"), rt.add(Branching().eval(), EXAMPLE, "odd")
        futures = [tenant.submit(X) for _ in range(10)]
        odd(X)
        for future in futures:
            assert_equal(future.result(PATIENCE_S), expected)
        assert rt.explain().policy == "youngest_first"
    assert sorted(seen) == list(range(11))
    with st.Runtime(policy=youngest_first) as rt:
        assert rt.explain().policy == "youngest_first"


def raising(snapshot: st.Snapshot) -> st.Plan:
    raise ZeroDivisionError("by nought")


def waiting_for_ever(snapshot: st.Snapshot) -> st.Plan:
    return st.Plan()


def empty_lane(snapshot: st.Snapshot) -> st.Plan:
    tenant = snapshot.tenants[0]
    return st.Plan((st.Lane(tenant.cohort, (), (st.Segment(snapshot.device.whole),)),))


def without_units(snapshot: st.Snapshot) -> st.Plan:
    tenant = snapshot.tenants[0]
    return st.Plan((st.Lane(tenant.cohort, tenant.waiting[:1], ()),))


def off_the_device(snapshot: st.Snapshot) -> st.Plan:
    tenant = snapshot.tenants[0]
    partition = st.Partition(1 << 60, 1, 1)
    return st.Plan((st.Lane(tenant.cohort, tenant.waiting[:1], (st.Segment(partition),)),))


def no_plan(snapshot: st.Snapshot) -> Any:
    return "soon"


@pytest.mark.parametrize(
    ("broken", "facts"),
    [
        (raising, "ZeroDivisionError: by nought"),
        (waiting_for_ever, "1 tenants wait, nothing runs"),
        (empty_lane, "is empty"),
        (without_units, "segments end at kernel 0"),
        (off_the_device, "are not on the device"),
        (no_plan, "AttributeError"),
    ],
)
def test_a_broken_plan_fails_its_requests_and_the_runtime_lives_on(
    broken: Callable[[st.Snapshot], st.Plan], facts: str
) -> None:
    works = registry.get_policy("space_time")
    is_broken = True

    def moody(snapshot: st.Snapshot, costs: st.CostModel) -> st.Plan:
        return broken(snapshot) if is_broken else works(snapshot, costs)

    module = tiny()
    expected = plain(module, X)
    with st.Runtime(policy=moody) as rt:
        tenant = rt.add(module, EXAMPLE, "t")
        for _ in range(3):
            error = tenant.submit(X).exception(PATIENCE_S)
            assert isinstance(error, st.PlanError)
            text = str(error)
            assert "policy 'moody'" in text and facts in text and len(text.splitlines()) >= 3
        is_broken = False
        assert_equal(tenant(X), expected)
        assert (rt.stats()["t"]["rejected"], rt.stats()["t"]["completed"]) == (3, 1)


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(st.OptionError) as caught:
        st.Runtime(policy="fifo")
    assert_three_parts(caught.value, "policy 'fifo' does not exist", ", ".join(registry.policy_names()), "@st.policy")


# -- equal results --------------------------------------------------------------------------------------

Case = tuple[str, tuple[Any, ...], Any]


@pytest.fixture(scope="module")
def zoo() -> Iterator[tuple[dict[str, nn.Module], list[Case]]]:
    """Mixed tenants, and requests of 1 to 5 rows with the plain modules' answers."""
    modules = {
        f"{name}{seed}": build(name, seed=seed) for name in ("mlp", "gru_cell", "recommender") for seed in range(4)
    }
    modules["odd"] = Branching().eval()
    cases: list[Case] = []
    draw = random.Random(0)
    for index in range(150):
        tenant = draw.choice(list(modules))
        args = (X,) if tenant == "odd" else example(tenant[:-1], rows=draw.randint(1, 5), seed=index)
        cases.append((tenant, args, pytree.tree_map(lambda leaf: leaf.clone(), plain(modules[tenant], *args))))
    yield modules, cases


def largest_outputs(cases: list[Case]) -> dict[str, list[float]]:
    """How large each output of a tenant gets over all its requests."""
    scales: dict[str, list[float]] = {}
    for name, _, reference in cases:
        sizes = [magnitude(leaf) for leaf in pytree.tree_leaves(reference)]
        scales[name] = list(map(max, sizes, scales.get(name, sizes)))
    return scales


@pytest.mark.parametrize("policy", ["time_slice", "streams", "static", "gslice", "krisp", "space_time"])
def test_all_policies_give_the_same_results(policy: str, zoo: tuple[dict[str, nn.Module], list[Case]]) -> None:
    modules, cases = zoo
    with st.Runtime(policy=policy) as rt:
        tenants = {
            name: rt.add(module, (X,) if name == "odd" else example(name[:-1]), name)
            for name, module in modules.items()
        }
        futures = [tenants[name].submit(*args) for name, args, _ in cases]
        scales = largest_outputs(cases)
        for future, (name, _, reference) in zip(futures, cases, strict=True):
            assert_equal(future.result(PATIENCE_S), reference, scales[name])
        lanes = [event.lane for event in rt.trace().events]
        assert sum(len(lane.requests) for lane in lanes) == len(cases)
        if policy == "space_time":
            assert any(lane.fused and len(lane.tenants) > 1 for lane in lanes), "or nothing was tested"
