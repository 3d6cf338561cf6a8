"""explain(): who shares what, why not, on how much; as values and as a table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

import spacetime as st
from spacetime.runtime.explain import ApartReport, CohortReport, Explanation, KernelReport
from tests.runtime.models import EXAMPLE, Branching, X, tiny


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    """Two of a kind, one of which has the other's head, and an opaque one; each has run."""
    first, second = tiny(0), tiny(1)
    second[2].load_state_dict(first[2].state_dict())
    with st.Runtime() as made:
        for name, module in (("first", first), ("second", second), ("odd", Branching().eval())):
            made.add(module, EXAMPLE, name)(X)
        yield made


def test_values_tell_kernels_forms_weights_and_units(rt: st.Runtime) -> None:
    explanation = rt.explain()
    (cohort,) = explanation.cohorts
    assert (explanation.device, explanation.policy) == ("cpu", "space_time")
    assert cohort.tenants == ("first", "second")
    assert [(kernel.index, kernel.op, kernel.form) for kernel in cohort.kernels] == [
        (0, "linear", "slot"),
        (1, "relu", "all rows"),
        (2, "linear", "slot"),
    ]
    own, head = 4 * (4 * 8 + 8), 4 * (8 * 3 + 3)
    assert [kernel.weight_bytes for kernel in cohort.kernels] == [2 * own, 0, head], "a shared head is stored once"
    assert [kernel.sharing_tenants for kernel in cohort.kernels] == [0, 0, 2]
    assert cohort.resident_bytes == 2 * own + head
    lane = cohort.last_lane
    assert lane is not None and (lane.tenants, lane.rows) == (1, 2)
    assert 1 <= lane.asked_units <= lane.granted_units <= explanation.num_units
    (opaque,) = explanation.opaque
    assert opaque.tenant == "odd" and "torch.export refused" in opaque.reason
    assert opaque.last_lane is not None and not opaque.last_lane.fused


def test_the_table_says_the_same(rt: st.Runtime) -> None:
    explanation, text = rt.explain(), str(rt.explain())
    (cohort,) = explanation.cohorts
    assert text.splitlines()[0] == f"cpu: {explanation.num_units} units, policy space_time"
    assert f"cohort {cohort.signature}: 2 tenants" in text and "3/3 kernels shared" in text
    assert "tenants: first, second" in text
    for kernel in cohort.kernels:
        (line,) = [line for line in text.splitlines() if line.split()[:2] == [str(kernel.index), kernel.op]]
        assert kernel.form in line and str(kernel.weight_bytes) in line
    assert f"opaque odd: runs alone, unmodified: {explanation.opaque[0].reason}" in text
    lane = cohort.last_lane
    assert lane is not None
    assert f"{lane.granted_units} units (asked {lane.asked_units}), {lane.duration_us} us" in text


def test_launches_are_those_of_lanes_beside_those_of_everybody_alone(rt: st.Runtime) -> None:
    launches = rt.explain().launches
    assert launches is not None and launches.tenants == 2, "of an opaque one nobody knows them"
    assert (launches.alone, launches.in_cohorts, launches.merged) == (6, 3, 3)
    assert (launches.products_alone, launches.products_in_cohorts, launches.products_merged) == (4, 2, 2)
    assert "6 alone, 3 in lanes of cohorts (50.0% saved)" in str(rt.explain())
    rt.remove("second")
    assert rt.explain().launches is None, "there is nobody to share with"


def test_an_operation_without_a_slot_form_is_launched_for_every_tenant() -> None:
    kernels = tuple([KernelReport(i, "k", "op", form, 0, 0) for i, form in enumerate(("slot", "per tenant", "folded"))])
    cohort = CohortReport("c", ("a", "b", "c"), kernels, 0, None)
    launches = Explanation("cpu", 2, "space_time", (cohort,), ()).launches
    assert launches is not None and (launches.alone, launches.in_cohorts) == (9, 5)


def test_an_explanation_makes_a_json_round_trip(rt: st.Runtime) -> None:
    explanation = rt.explain()
    assert st.Explanation.from_json(explanation.to_json()) == explanation


def test_an_operation_without_a_slot_form_is_told(rt: st.Runtime) -> None:
    rt.add(nn.Bilinear(4, 4, 3).eval(), (X, X), "bilinear")
    explanation = rt.explain()
    told = [kernel.form for cohort in explanation.cohorts if "bilinear" in cohort.tenants for kernel in cohort.kernels]
    assert "per tenant" in told or "bilinear" in {report.tenant for report in explanation.opaque}


def test_before_the_first_request_there_is_no_lane() -> None:
    with st.Runtime() as rt:
        assert str(rt.explain()).startswith("cpu: ") and rt.explain().cohorts == ()
        rt.add(tiny(), EXAMPLE, "tenant")
        (cohort,) = rt.explain().cohorts
        assert cohort.last_lane is None and "last lane" not in str(rt.explain())


def test_every_form_of_a_kernel_is_explained() -> None:
    with st.Runtime() as rt:
        rt.add(tiny(), EXAMPLE, "one")
        explanation = rt.explain()
    for kernel in explanation.cohorts[0].kernels:
        assert f"{kernel.form}: {kernel.why}" in str(explanation)


def test_a_tenant_that_runs_apart_is_explained() -> None:
    explanation = Explanation("cpu", 2, "space_time", (), (), apart=(ApartReport("slow", 3.04),))
    assert "apart slow: lanes with it took 3.0x as long as those without" in str(explanation)
    assert Explanation.from_json(explanation.to_json()) == explanation
    with st.Runtime() as rt:
        rt.add(tiny(), EXAMPLE, "fine")(X)
        assert rt.explain().apart == ()


def test_a_cohort_whose_lanes_have_come_to_take_longer_is_stale(rt: st.Runtime) -> None:
    (cohort,) = rt.explain().cohorts
    assert not rt.explain().stale
    lane: dict[str, int] = {"tenants": 2, "rows": 4, "units": 1}

    def slow_down(scheduler: object) -> None:
        for duration_us in (1000,) * 200 + (3000,) * 200:
            rt._costs.observe(cohort.signature, **lane, fused=True, duration_us=duration_us)

    rt._driver.call(slow_down)
    (stale,) = rt.explain().stale
    assert stale.cohort == cohort.signature and stale.ratio == pytest.approx(3, rel=0.1)
    assert f"stale {stale}" in str(rt.explain()) and "profile it again" in str(rt.explain())


def test_operations_have_short_names() -> None:
    with st.Runtime() as rt:
        rt.add(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).eval(), EXAMPLE, "t")
        text, (cohort,) = str(rt.explain()), rt.explain().cohorts
    assert cohort.kernels[0].op == "_native_batch_norm_legit_no_training"
    assert "batch_norm " in text and cohort.kernels[0].op not in text
