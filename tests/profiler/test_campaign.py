"""Campaigns on a fake device: what is measured, what is not measured again, what an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spacetime.errors import OptionError
from spacetime.profiler.campaign import BETWEEN, CEILING, Campaign, Progress, subjects_of
from spacetime.profiler.measure import Effort, Stopped
from spacetime.profiler.profile import CODE, whole_key
from spacetime.profiler.records import Key
from spacetime.profiler.run import conduct
from spacetime.profiler.store import Store
from tests.profiler.fakes import FakeRun, FakeSite, Latency, law, program

PROGRAM = program(8, 16, 8, 32)
LATENCY = law(90, 10)
KEYS = [PROGRAM.kernels[index].key for index in (0, 1, 3)]


def campaign(folder: Path, latency_us: Latency = LATENCY, sizes: tuple[int, ...] = (1, 2), **changes: Any) -> Campaign:
    site = FakeSite(sizes, latency_us)
    settings: dict[str, Any] = {
        "program": PROGRAM,
        "rows": (1, 4),
        "sizes": sizes,
        "exact": False,
        "tolerance": 0.05,
        "cache": "run",
        "effort": Effort(),
        "progress": lambda _: None,
        "stopped": lambda: False,
        "store": Store(folder, site.environment.device),
        **changes,
    }
    made = Campaign(site=site, **settings)
    made.known |= made.store.read().of(site.environment)
    made.begun = made.store.begun.read().of(site.environment)
    return made


def run_of(made: Campaign) -> FakeRun:
    assert isinstance(made.site, FakeSite)
    return FakeRun(made.program, made.site)


CACHES = pytest.mark.parametrize("cache", ["run", "warm", "cold"])


@CACHES
def test_every_key_is_measured_once_at_all_rows_and_sizes(tmp_path: Path, cache: str) -> None:
    made = campaign(tmp_path, cache=cache)
    found = made.run(run_of(made))
    between = [BETWEEN + PROGRAM.signature] if cache == "run" else []
    expected = [Key(key, rows, units, cache) for rows in (1, 4) for key in KEYS + between for units in (1, 2)]
    assert [each.key for each in found] == expected
    assert made.store.read().of(made.site.environment) == {each.key: each for each in found}
    assert [round(each.point.median_us) for each in found] == [100, 55] * (len(found) // 2)
    assert {each.method for each in found} == {"measured"}


@CACHES
def test_what_is_known_is_not_measured_again(tmp_path: Path, cache: str) -> None:
    first = campaign(tmp_path, cache=cache)
    found, ceilings = first.run(run_of(first)), first.ceilings()
    lines = first.store.path.read_text()
    again = campaign(tmp_path, cache=cache)
    run = run_of(again)
    assert (again.run(run), again.ceilings()) == (found, ceilings)
    assert run.num_runs == 0 and run.site.num_timed == 0
    assert again.store.path.read_text() == lines


@CACHES
def test_only_what_is_missing_is_measured(tmp_path: Path, cache: str) -> None:
    smaller = campaign(tmp_path, cache=cache, program=program(8, 16), rows=(1,))
    smaller.run(run_of(smaller))
    made = campaign(tmp_path, cache=cache, rows=(1,))
    reports: list[Progress] = []
    made.progress = reports.append
    run = run_of(made)
    made.run(run)
    new = [key for key in made.store.read().of(made.site.environment) if ", 32]" in key.kernel]
    assert len(new) == 2
    assert [report.done for report in reports] == list(range(1, len(reports) + 1))
    assert reports[-1].done == reports[-1].total
    assert reports[-1].num_known == 2 + (cache == "run")  # what lies between is the signature's, which these share


def test_one_state_of_the_caches_is_not_another(tmp_path: Path) -> None:
    warm = campaign(tmp_path, cache="warm")
    warm.run(run_of(warm))
    cold = campaign(tmp_path, cache="cold")
    cold.run(run_of(cold))
    assert {key.cache for key in cold.store.read().of(cold.site.environment)} == {"warm", "cold"}


def test_another_size_is_measured_together_with_the_known_ones(tmp_path: Path) -> None:
    """Sizes are compared with each other, so they are measured in turns."""
    first = campaign(tmp_path, sizes=(1, 4), rows=(1,))
    first.run(run_of(first))
    made = campaign(tmp_path, sizes=(1, 2, 4), rows=(1,))
    run = run_of(made)
    made.run(run)
    assert {1, 2, 4} <= set(run.site.visits)


def test_kernels_that_are_not_needed_are_not_run_one_by_one(tmp_path: Path) -> None:
    first = campaign(tmp_path, cache="warm", program=program(8, 32), rows=(1,))
    first.run(run_of(first))
    made = campaign(tmp_path, cache="warm", rows=(1,))
    run = run_of(made)
    made.run(run)
    assert run.asked == [0, 1]  # the second was the last unknown one


@pytest.mark.parametrize("cache", ["run", "warm"])
def test_a_device_of_many_sizes_is_measured_at_few_points(tmp_path: Path, cache: str) -> None:
    sizes = (*range(8, 129, 8), 132)
    made = campaign(tmp_path, law(9000, 10), sizes, cache=cache, rows=(1,))
    found = made.run(run_of(made))
    points = [each.key.units for each in found if each.key.kernel == KEYS[0]]
    assert {8, 132} <= set(points) and len(points) < 11
    again = campaign(tmp_path, law(9000, 10), sizes, cache=cache, rows=(1,))
    run = run_of(again)
    assert again.run(run) == found and run.num_runs == 0


def test_named_sizes_are_measured_however_many(tmp_path: Path) -> None:
    sizes = tuple(range(1, 21))
    made = campaign(tmp_path, law(9000, 10), sizes, exact=True, rows=(1,))
    assert len(made.run(run_of(made))) == len(sizes) * (len(KEYS) + 1)


def test_ceilings_are_the_best_that_the_whole_device_reached(tmp_path: Path) -> None:
    made = campaign(tmp_path, lambda key, units, now: {"compute": 2.0, "bandwidth": 4.0, "launch": 0.5}[key] / units)
    found = made.ceilings()
    assert (found.flops_per_us, found.bytes_per_us, found.launch_us) == pytest.approx((1.0, 0.5, 0.25))
    assert {key.kernel for key in made.known} == {CEILING + name for name in ("compute", "bandwidth", "launch")}


def test_a_program_that_changed_is_noticed(tmp_path: Path) -> None:
    made = campaign(tmp_path, cache="warm")
    run = run_of(made)
    run.keys.pop()
    with pytest.raises(OptionError, match="did not run as it was captured") as caught:
        made.run(run)
    assert "layer3" in str(caught.value)


def test_subjects_are_the_keys_with_everything_that_they_stand_for() -> None:
    found = subjects_of(PROGRAM, with_between=True)
    assert [(each.name, each.indices) for each in found] == [
        ("layer0", (0, 2)),
        ("layer1", (1,)),
        ("layer3", (3,)),
        ("between kernels", (4,)),
    ]
    assert len(subjects_of(PROGRAM, with_between=False)) == 3


def test_the_modules_code_and_its_whole_operations_are_measured_too(tmp_path: Path) -> None:
    """They have keys of their own, which are known the next time; a run has a sample of each."""
    made = campaign(tmp_path, lambda key, units, now_us: {"between": 5.0, "whole": 70.0}.get(key, 90 / units + 10))
    run = run_of(made)
    run.has_code, run.wholes = True, [(1, 2)]
    found = made.run(run)
    code, whole = CODE + PROGRAM.signature, whole_key(1, 2, PROGRAM.signature)
    assert [each.key.kernel for each in found if each.key == Key(each.key.kernel, 1, 1)] == [*KEYS, code, whole]
    assert {round(each.point.median_us) for each in found if each.key.kernel == code} == {5}
    assert {round(each.point.median_us) for each in found if each.key.kernel == whole} == {70}
    again = campaign(tmp_path)
    resumed = run_of(again)
    resumed.has_code, resumed.wholes = run.has_code, run.wholes
    assert again.run(resumed) == found and resumed.num_runs == 0


# -- interruption -----------------------------------------------------------------------------------------


def interrupt_after(count: int) -> Callable[[Progress], None]:
    def progress(report: Progress) -> None:
        if report.done == count:
            raise KeyboardInterrupt

    return progress


@CACHES
@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_interrupted_campaign_keeps_what_it_has_and_is_resumed(tmp_path: Path, cache: str, count: int) -> None:
    made = campaign(tmp_path, cache=cache)
    with pytest.raises(KeyboardInterrupt):
        conduct(made, run_of(made), interrupt_after(count))
    kept = {key for key in made.store.read().of(made.site.environment) if not key.kernel.startswith(CEILING)}
    assert len(kept) >= 2 * count
    resumed = campaign(tmp_path, cache=cache)
    _, found = conduct(resumed, run_of(resumed), lambda _: None)
    assert kept <= {each.key for each in found}
    whole = campaign(tmp_path / "other", cache=cache)
    assert [each.key for each in found] == [each.key for each in conduct(whole, run_of(whole), lambda _: None)[1]]
    lines = resumed.store.path.read_text().splitlines()
    assert len(lines) == 1 + len(found) + 3  # the environment, every measurement once, the ceilings


def test_an_interruption_is_told_of_everything_that_is_kept(tmp_path: Path) -> None:
    """Kernels that were measured in the same runs are kept together, after the interruption."""
    made, reports = campaign(tmp_path, cache="run"), []

    def progress(report: Progress) -> None:
        reports.append(report)
        if report.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conduct(made, run_of(made), progress)
    stored = made.store.read().of(made.site.environment)
    kept = {(key.kernel, key.rows) for key in stored if not key.kernel.startswith(CEILING)}
    assert len(kept) > 1, "an interruption during the runs keeps more than what was reported before it"
    assert reports[-1].done == len(kept)


def test_a_kernel_half_measured_is_not_kept(tmp_path: Path) -> None:
    made = campaign(tmp_path, cache="warm")
    run = run_of(made)
    made.stopped = lambda: run.site.visits[-1:] == [2]  # in its second size
    with pytest.raises(Stopped):
        made.run(run)
    assert made.store.read().measurements == {}


def stopped_after(made: Campaign, num_timed: int) -> FakeRun:
    """Run it until so many samples were taken."""
    run = run_of(made)
    made.stopped = lambda: run.site.num_timed >= num_timed
    with pytest.raises(Stopped):
        made.run(run)
    return run


@CACHES
def test_what_was_begun_is_gone_on_with(tmp_path: Path, cache: str) -> None:
    """Every sample counts, and no more are taken than without the interruption."""
    whole = campaign(tmp_path / "whole", cache=cache, rows=(1,))
    expected = run_of(whole)
    found = whole.run(expected)
    reports: list[Progress] = []
    first = campaign(tmp_path, lambda key, units, now_us: LATENCY(key, units, now_us) + 0.5, cache=cache, rows=(1,))
    first.progress = reports.append
    begun_run = stopped_after(first, {"run": 40, "warm": 14, "cold": 16}[cache])  # whole turns
    assert first.store.read().measurements == {}, "nothing is done"
    assert (reports[-1].done, reports[-1].num_begun) == (0, 4 if cache == "run" else 1)
    begun = first.store.begun.read().of(first.site.environment)
    for each in begun.values():
        assert len(each.samples_us) == len(begun[replace(each.key, units=1)].samples_us) > 0
    resumed = campaign(tmp_path, cache=cache, rows=(1,))
    run = run_of(resumed)
    again = resumed.run(run)
    assert [(each.key, len(each.samples_us)) for each in again] == [(each.key, len(each.samples_us)) for each in found]
    for each in again:
        kept = begun[each.key].samples_us if each.key in begun else ()
        assert each.samples_us[: len(kept)] == kept and set(each.samples_us[len(kept) :]).isdisjoint(kept)
    assert run.site.num_timed + begun_run.site.num_timed <= expected.site.num_timed


@pytest.mark.parametrize("cache", ["run", "warm"])
def test_interruptions_add_up_to_a_measurement(tmp_path: Path, cache: str) -> None:
    for attempt in range(20):
        made = campaign(tmp_path, cache=cache, rows=(1,), program=program(8))
        run = run_of(made)
        made.stopped = lambda run=run: run.site.num_timed >= 20
        try:
            made.run(run)
        except Stopped:
            continue
        assert attempt > 0, "one attempt is not enough for it"
        return
    pytest.fail("nothing was kept")


def test_less_than_a_turn_of_all_sizes_is_not_kept(tmp_path: Path) -> None:
    """One size alone would be compared with others of another day."""
    made, reports = campaign(tmp_path), []
    made.progress = reports.append
    stopped_after(made, 3)
    assert made.store.begun.read().measurements == {}
    assert [(report.done, report.num_begun) for report in reports] == [(0, 0)]


def test_what_was_begun_on_other_sizes_is_begun_anew(tmp_path: Path) -> None:
    stopped_after(campaign(tmp_path, sizes=(2,), rows=(1,)), 20)
    made = campaign(tmp_path, sizes=(1, 2), rows=(1,))
    assert made.begun
    whole = campaign(tmp_path / "whole", sizes=(1, 2), rows=(1,))
    run, expected = run_of(made), run_of(whole)
    made.run(run)
    whole.run(expected)
    assert run.site.num_timed == expected.site.num_timed


@pytest.mark.parametrize("cache", ["run", "warm"])
def test_the_first_points_of_many_sizes_are_not_measured_again(tmp_path: Path, cache: str) -> None:
    sizes = (*range(8, 129, 8), 132)
    changes: dict[str, Any] = {"latency_us": law(9000, 10), "sizes": sizes, "cache": cache, "rows": (1,)}
    whole = campaign(tmp_path / "whole", **changes)
    run = run_of(whole)
    expected, visits = whole.run(run), run.site.visits
    first = list(dict.fromkeys(visits))[:4]
    made = campaign(tmp_path, **changes)
    stopping = run_of(made)
    made.stopped = lambda: bool(set(stopping.site.visits) - set(first))  # it asks for others
    with pytest.raises(Stopped):
        made.run(stopping)
    resumed = campaign(tmp_path, **changes)
    run = run_of(resumed)
    assert [each.key for each in resumed.run(run)] == [each.key for each in expected]
    assert KEYS[0] in {key.kernel for key in resumed.begun}
    if cache == "run":
        assert not set(run.site.visits) & set(first), "all kernels had them"


def test_what_goes_wrong_on_the_measuring_thread_reaches_the_caller(tmp_path: Path) -> None:
    def broken(key: str, units: int, now_us: float) -> float:
        raise MemoryError("no room for the activations")

    made = campaign(tmp_path, broken)
    with pytest.raises(MemoryError, match="no room"):
        conduct(made, run_of(made), lambda _: None)


def test_a_campaign_tells_how_far_it_is(tmp_path: Path) -> None:
    made, reports = campaign(tmp_path), []
    conduct(made, run_of(made), reports.append)
    assert [report.done for report in reports] == list(range(1, 9))
    assert {report.total for report in reports} == {8}
    assert reports[-1].num_known == 0
