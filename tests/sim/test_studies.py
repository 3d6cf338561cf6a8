"""Studies: the value and how it prints, and whether their quick looks still show what their notes say."""

from __future__ import annotations

from functools import cache

import pytest

from spacetime.errors import OptionError
from spacetime.plan import Snapshot
from spacetime.sim import studies
from spacetime.sim.devices import find
from spacetime.sim.studies import krisp, space_time_table
from spacetime.sim.studies.space_time_table import CONV, CONV_RATES, FITTED_TO, Setting, Shape
from spacetime.sim.studies.study import Claim, Column, Study, Table, geomean
from tests.sim.looks import check_prints, quick
from tests.slow import mostly

# Their quick looks take seconds, so they are run and checked in one file each.
OWN_FILE = ("scale", "gslice")


def table(study: Study, beginning: str) -> dict[str, tuple[object, ...]]:
    """The rows of one table by their first cell."""
    (found,) = [each for each in study.tables if each.title.startswith(beginning)]
    return {str(row[0]): row[1:] for row in found.rows}


SMALL = Study(
    name="small",
    title="A small study",
    device="v100",
    version="0",
    is_quick=False,
    question="Why?",
    method=("Like this.",),
    claims=(Claim("a gain", 2.0, 3.0, "a paper"),),
    tables=(Table("Rates", (Column("way"), Column("GFLOP/s", ".1f")), (("one", 1.25), ("another", None))),),
    notes=("Because.",),
)


def test_a_study_survives_json() -> None:
    assert Study.from_json(SMALL.to_json()) == SMALL
    found = quick("space_time_table")
    assert Study.from_json(found.to_json()) == found


def test_markdown_says_modelled_and_how_to_make_it_again() -> None:
    text = str(SMALL)
    assert "**modelled**" in text and "Device: v100" in text and "spacetime study small --markdown FILE" in text
    assert "| a gain |      2.00 |     3.00 |                 1.50 | a paper      |" in text
    assert "| one     |     1.2 |" in text and "| another |       - |" in text
    assert "quick look" not in text and "quick look" in quick("krisp").to_markdown()


@pytest.mark.parametrize("name", mostly(studies.names(), slow=OWN_FILE))
def test_a_study_reports_its_progress_and_is_the_same_again(name: str) -> None:
    steps: list[tuple[int, int]] = []
    again = studies.run(name, quick=True, progress=lambda done, total: steps.append((done, total)))
    assert again == quick(name)
    assert [done for done, _ in steps] == list(range(steps[0][1])) and len({total for _, total in steps}) == 1


@pytest.mark.parametrize("name", [name for name in studies.names() if name not in OWN_FILE])
def test_a_study_is_printed_and_documented(name: str) -> None:
    check_prints(quick(name))


def test_an_unknown_study_is_refused() -> None:
    with pytest.raises(OptionError, match=r"study 'nonesuch' does not exist\n.*flood(.|\n)*name one of these"):
        studies.run("nonesuch")


def test_geomean() -> None:
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)


# Space-Time's table


@cache
def fitted() -> Setting:
    return space_time_table.fit()


def test_the_fit_meets_the_figures_that_it_was_made_from() -> None:
    few, many = (space_time_table.measure(CONV, count, fitted()) for count in FITTED_TO)
    assert few.time_only == pytest.approx(CONV_RATES[FITTED_TO[0]].time_only, rel=0.02)
    assert many.time_only == pytest.approx(CONV_RATES[FITTED_TO[1]].time_only, rel=0.02)
    assert many.space_time == pytest.approx(CONV_RATES[FITTED_TO[1]].space_time, rel=0.02)
    assert few.space_time < few.time_only, "one product is slower as a batch, as published"


def test_the_fit_predicts_the_other_rows() -> None:
    for count in (8, 18, 40, 80):
        modelled, published = space_time_table.measure(CONV, count, fitted()), CONV_RATES[count]
        assert modelled.space_time == pytest.approx(published.space_time, rel=0.2)
        assert modelled.space_only == pytest.approx(published.space_only, rel=0.2)
        assert modelled.time_only == pytest.approx(published.time_only, rel=0.03)


def test_the_fit_follows_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the result is written down: other published rates, other devices."""
    twice = {
        count: space_time_table.Rates(2 * each.space_time, 2 * each.space_only, 2 * each.time_only)
        for count, each in CONV_RATES.items()
    }
    monkeypatch.setattr(space_time_table, "CONV_RATES", twice)
    faster = space_time_table.fit()
    assert faster.round_us == pytest.approx(fitted().round_us / 2)
    assert faster.single.flops_per_unit_us > 1.9 * fitted().single.flops_per_unit_us


def test_rounds_are_counted_in_operations() -> None:
    shape, v100 = Shape("tiny", 64, 32, 16), find("v100")
    setting = Setting("slow rounds", v100, v100, 1e6)
    rates = space_time_table.measure(shape, 4, setting)
    assert rates.time_only == pytest.approx(4 * 2 * 64 * 32 * 16 / 1e6 / 1e3, rel=0.01), "the overhead is nearly all"


def test_space_only_goes_through_the_queues() -> None:
    counts: list[int] = []

    def watched(snapshot: Snapshot, costs: space_time_table.CostModel) -> space_time_table.Plan:
        plan = space_time_table.hyper_q(snapshot, costs)
        counts.append(len(snapshot.running) + len(plan.lanes))
        return plan

    space_time_table._rate(CONV, 40, watched, find("v100"), 0.0)
    assert max(counts) == space_time_table.HYPER_Q_QUEUES


def test_fusing_gains_more_the_more_kernels_there_are() -> None:
    claims = {claim.name: claim for claim in quick("space_time_table").claims}
    few, many = (claims[f"conv2_2, R = {count}: space-time over space-only"] for count in (10, 20))
    assert 1 < few.modelled < many.modelled
    assert few.ratio == few.modelled / 1.68


# KRISP


def test_right_sizing_gains_over_one_worker_and_over_equal_partitions() -> None:
    gains = table(quick("krisp"), "Throughput, and p99")
    alone, two, four = gains["`krisp_overlap`"][:3]
    assert isinstance(alone, float) and isinstance(two, float) and isinstance(four, float)
    assert 0.9 < alone < 1.1 < two < four
    assert four > gains["`static`"][2]  # type: ignore[operator]
    assert gains["`time_slice`"][:3] == pytest.approx((1.0, 1.0, 1.0), rel=0.01), "taking turns gains nothing"


def test_isolated_masks_differ_in_nothing_and_have_no_long_tails() -> None:
    gains = table(quick("krisp"), "Throughput, and p99")
    assert gains["`krisp`"] == gains["`krisp_packed`"] == gains["`krisp_distributed`"]
    assert gains["`krisp`"][-1] < 1.5 * gains["`static`"][-1]  # type: ignore[operator]


def test_workers_in_step_get_in_each_others_way() -> None:
    drifting, in_step = table(quick("krisp"), "4 workers that drift")["`streams`"][:2]
    assert in_step < drifting  # type: ignore[operator]


def test_every_policy_of_the_families_is_played() -> None:
    assert len(table(quick("krisp"), "Throughput, and p99")) >= 4 + 6 + 1 + 1


@pytest.mark.parametrize("policy", ["krisp", krisp.SHARED])
def test_all_requests_of_a_run_are_served(policy: str) -> None:
    report = krisp.play(policy, "squeezenet", 4, 1, noise=0.0, num_requests=20)
    assert report.completed == 20 and report.device.name == "mi50"
