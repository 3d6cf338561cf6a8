"""Timing on a fake clock: turns, effort, budgets, disturbances, stopping."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from spacetime.errors import OptionError
from spacetime.profiler.curves import Point, find_knee
from spacetime.profiler.measure import MAX_DISTURBED, Effort, Stopped, Wanted, half_width, time_in_runs, time_on_sizes
from tests.profiler.fakes import FakeRun, FakeSite, Latency, law, program


def noisy(share: float, seed: int = 0) -> Latency:
    rng = np.random.default_rng(seed)
    return lambda key, units, now_us: (90 / units + 10) * (1 + share * abs(rng.standard_normal()))


def never() -> bool:
    return False


def test_every_size_is_measured_and_a_steady_kernel_costs_few_samples() -> None:
    site, effort = FakeSite((1, 2, 4), law(90, 10)), Effort()
    taken = time_on_sizes(site, site.call("k"), (1, 2, 4), effort, cold=False, stopped=never)
    assert {units: set(map(round, each.samples_us)) for units, each in taken.items()} == {1: {100}, 2: {55}, 4: {32}}
    assert all(len(each.samples_us) == effort.min_samples for each in taken.values())


def test_a_noisy_kernel_is_measured_until_its_median_is_sure() -> None:
    site, effort = FakeSite((1, 2), noisy(0.1)), Effort(budget_s=1e3, max_samples=100_000)
    taken = time_on_sizes(site, site.call("k"), (1, 2), effort, cold=False, stopped=never)
    for each in taken.values():
        assert len(each.samples_us) > effort.min_samples
        assert half_width(each.samples_us) <= effort.precision


def test_two_campaigns_find_the_same_knees() -> None:
    """Of kernels whose gain from a second core lies anywhere, measured with three per cent of noise."""
    ratios = np.linspace(0.8, 2.0, 60)

    def knees(seed: int) -> list[int]:
        rng, found = np.random.default_rng(seed), []
        for ratio in ratios:
            site = FakeSite((1, 2), lambda key, u, now, r=ratio: (r if u == 1 else 1) * rng.normal(100, 3))
            taken = time_on_sizes(site, site.call("k"), (1, 2), Effort(sample_us=1), cold=False, stopped=never)
            found.append(find_knee([Point(units, each.samples_us) for units, each in taken.items()]).units)
        return found

    assert np.mean(np.array(knees(1)) == np.array(knees(2))) >= 0.95


def test_quick_kernels_are_called_many_times_for_one_sample_and_slow_ones_once() -> None:
    quick, slow = FakeSite((1,), law(0, 2.0)), FakeSite((1,), law(0, 9e4))
    effort = Effort(sample_us=200, budget_s=1.0)
    assert time_on_sizes(quick, quick.call("k"), (1,), effort, cold=False, stopped=never)[1].calls == 100
    assert time_on_sizes(slow, slow.call("k"), (1,), effort, cold=False, stopped=never)[1].calls == 1


def test_cold_samples_are_single_calls_each_after_a_sweep() -> None:
    site = FakeSite((1, 2), law(0, 2.0))
    taken = time_on_sizes(site, site.call("k"), (1, 2), Effort(), cold=True, stopped=never)
    assert {each.calls for each in taken.values()} == {1}
    assert site.num_swept == sum(len(each.samples_us) for each in taken.values())


def test_the_budget_ends_it_but_every_size_has_a_sample() -> None:
    site = FakeSite((1, 2, 4), law(0, 3e6))
    taken = time_on_sizes(site, site.call("k"), (1, 2, 4), Effort(budget_s=1.0), cold=False, stopped=never)
    assert [len(each.samples_us) for each in taken.values()] == [1, 1, 1]


def test_sizes_take_turns_forward_and_backward() -> None:
    site = FakeSite((1, 2, 4), noisy(0.1))
    time_on_sizes(site, site.call("k"), (1, 2, 4), Effort(), cold=False, stopped=never)
    assert site.visits[:9] == [1, 2, 4, 4, 2, 1, 1, 2, 4]


@pytest.mark.parametrize("in_runs", [False, True])
def test_a_machine_that_slows_down_does_not_look_like_scaling(in_runs: bool) -> None:
    """One that takes ten per cent more at the end: units change nothing, and the knee stays at one."""
    site = FakeSite((1, 2, 4), lambda key, units, now_us: 100 * (1 + now_us / 1e5))
    effort = Effort(min_samples=30)
    if in_runs:
        run = FakeRun(program(8), site)
        found = time_in_runs(site, lambda: run.time(1, site), {"k": Wanted((0,), (1, 2, 4))}, effort, stopped=never)
        ((_, taken),) = found
    else:
        taken = time_on_sizes(site, site.call("k"), (1, 2, 4), effort, cold=False, stopped=never)
    medians = [Point(units, each.samples_us) for units, each in taken.items()]
    assert site.time_us > 1e4  # it did slow down
    assert find_knee(medians).units == 1


def test_disturbed_samples_are_left_out_while_there_are_others() -> None:
    site = FakeSite((1,), law(0, 300.0), disturbed=lambda count: count % 3 != 0)
    taken = time_on_sizes(site, site.call("k"), (1,), Effort(), cold=False, stopped=never)[1]
    assert set(taken.samples_us) == {300.0}
    assert taken.num_disturbed > len(taken.samples_us)


def test_on_a_machine_that_is_always_disturbed_there_is_an_end_and_an_answer() -> None:
    site, effort = FakeSite((1,), law(0, 300.0), disturbed=lambda count: True), Effort(budget_s=1e9)
    taken = time_on_sizes(site, site.call("k"), (1,), effort, cold=False, stopped=never)[1]
    assert len(taken.samples_us) == MAX_DISTURBED * effort.max_samples
    assert taken.num_disturbed == 0  # none was left out


def test_it_stops_when_asked_to() -> None:
    site = FakeSite((1, 2), noisy(0.1))
    with pytest.raises(Stopped):
        time_on_sizes(site, site.call("k"), (1, 2), Effort(), cold=False, stopped=lambda: site.num_timed > 5)
    assert site.num_timed <= 5 + 1 + 3 + 3  # the first call, the number of calls, a burst


# -- in runs ----------------------------------------------------------------------------------------------


WANTED = {"narrow": Wanted((0, 2), (1, 2)), "wide": Wanted((1,), (1, 2))}


def test_kernels_are_given_when_they_are_sure_and_equal_ones_share_their_samples() -> None:
    latency = law(90, 10)
    shaky = noisy(0.3)
    site = FakeSite((1, 2), lambda key, u, now: shaky(key, u, now) if "16" in key else latency(key, u, now))
    run = FakeRun(program(8, 16, 8), site)
    found = list(time_in_runs(site, lambda: run.time(1, site), WANTED, Effort(), stopped=never))
    assert [key for key, _ in found] == ["narrow", "wide"]
    narrow, wide = (dict(taken) for _, taken in found)
    assert set(map(round, narrow[2].samples_us)) == {55}
    assert len(narrow[1].samples_us) == 12 < len(wide[1].samples_us)
    assert len(narrow[1].samples_us) % 2 == 0


def test_runs_stop_at_the_budget_of_all_kernels_together() -> None:
    site = FakeSite((1, 2), noisy(0.5))
    run = FakeRun(program(8, 16, 8), site)
    effort = Effort(budget_s=0.01, max_samples=10**9, precision=0.0)
    found = dict(time_in_runs(site, lambda: run.time(1, site), WANTED, effort, stopped=never))
    assert found.keys() == WANTED.keys()
    assert 0.02e6 <= site.time_us < 0.04e6


def test_runs_that_are_stopped_still_give_what_is_good() -> None:
    site = FakeSite((1, 2), noisy(0.5))
    run = FakeRun(program(8, 16, 8), site)
    effort, given = Effort(budget_s=1e9, precision=0.0, max_samples=10**9), []
    stop_after = 2 * 4 * effort.min_samples * 2
    with pytest.raises(Stopped):
        for key, taken in time_in_runs(
            site, lambda: run.time(1, site), WANTED, effort, stopped=lambda: site.num_timed > stop_after
        ):
            given.append(key)
            assert all(len(each.samples_us) >= effort.min_samples for each in taken.values())
    assert given == ["narrow", "wide"]


def test_runs_stopped_at_once_give_nothing() -> None:
    site = FakeSite((1, 2), noisy(0.5))
    with pytest.raises(Stopped):
        next(time_in_runs(site, list, WANTED, Effort(), stopped=lambda: True))


# -- how sure ---------------------------------------------------------------------------------------------


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    holds = []
    for _ in range(400):
        samples = rng.exponential(1.0, 31)
        holds.append(abs(np.median(samples) - np.log(2)) <= 2 * half_width(samples.tolist()) * np.median(samples))
    assert np.mean(holds) >= 0.93


def test_more_samples_are_surer() -> None:
    rng = np.random.default_rng(5)
    widths = [half_width((1 + 0.1 * rng.standard_normal(count)).tolist()) for count in (12, 100, 1000, 10_000)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


def test_no_time_is_refused() -> None:
    with pytest.raises(OptionError, match="needs time"):
        Effort(budget_s=0)
