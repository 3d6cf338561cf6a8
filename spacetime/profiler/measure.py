"""Timing kernels on several sizes until their medians are sure. Knows sites, no torch; the campaign calls it.

Sizes take turns in every round, forward and backward, so that a machine that drifts does not look like scaling. After
each change of size the first call is not counted. Kernels are timed one at a time, over and over, quick ones many
times in a row for one sample; or all together, one call each in whole runs of their program, which leave the caches
as they are when the program is really used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, sqrt

from spacetime.errors import OptionError
from spacetime.profiler.site import Call, Sample, Site

MAX_CALLS = 10_000
BURST = 3  # samples between two changes of size
SLOW_US = 50_000.0  # slower kernels have one sample between two changes
Z_95 = 1.96
MIN_CLEAN = 2  # undisturbed samples that speak for themselves, however many others were disturbed
MAX_DISTURBED = 5  # times max_samples: then the machine is too busy to wait for it


class Stopped(Exception):
    """The measurement was asked to end."""


@dataclass(frozen=True, slots=True)
class Effort:
    """When a measurement is good enough, and how much it may cost."""

    budget_s: float = 1.0  # for each kernel at one row count, all sizes together; every size has a sample even beyond
    precision: float = 0.02  # half of the median's 95 % interval, relative
    min_samples: int = 12
    max_samples: int = 90
    sample_us: float = 200.0

    def __post_init__(self) -> None:
        if not self.budget_s > 0:
            facts = f"budget_s is {self.budget_s}"
            raise OptionError("a measurement needs time", facts, "give each kernel a second, or a tenth")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be known of one key: where it is in the samples of a run, and on which sizes."""

    indices: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(slots=True)
class Taken:
    """Samples of one size."""

    calls: int
    clean_us: list[float] = field(default_factory=list)
    disturbed_us: list[float] = field(default_factory=list)
    num_left_out: int = 0  # disturbed ones of an earlier run, of which this one goes on

    def add(self, sample: Sample) -> None:
        (self.disturbed_us if sample.disturbed else self.clean_us).append(sample.us)

    @property
    def samples_us(self) -> tuple[float, ...]:
        """The undisturbed ones; on a machine so busy that there are too few of them, all."""
        return tuple(self.clean_us if self._enough else self.clean_us + self.disturbed_us)

    @property
    def num_disturbed(self) -> int:
        """Left out."""
        return self.num_left_out + (len(self.disturbed_us) if self._enough else 0)

    @property
    def num_taken(self) -> int:
        return len(self.clean_us) + len(self.disturbed_us)

    @property
    def _enough(self) -> bool:
        return not self.disturbed_us or len(self.clean_us) >= MIN_CLEAN


def time_on_sizes(
    site: Site,
    call: Call,
    sizes: Sequence[int],
    effort: Effort,
    *,
    cold: bool,
    stopped: Callable[[], bool],
    taken: dict[int, Taken] | None = None,
) -> Mapping[int, Taken]:
    """Every size in turns, until all are sure, or the budget is spent.

    `taken` is what there is already, and grows: whoever stops this has it there.
    """
    end_us = site.now_us() + effort.budget_s * 1e6
    taken = {} if taken is None else taken
    order = list(sizes)
    while True:
        for units in order:
            if stopped():
                raise Stopped
            site.confine(units)
            site.sample(call, 1)
            if units not in taken:
                taken[units] = Taken(1 if cold else _num_calls(site, call, effort))
            _burst(site, call, taken[units], cold)
        if site.now_us() >= end_us or all(_is_sure(each, effort) for each in taken.values()):
            return taken
        order.reverse()


def time_in_runs(
    site: Site,
    run: Callable[[], Sequence[Sample]],
    wanted: Mapping[str, Wanted],
    effort: Effort,
    *,
    stopped: Callable[[], bool],
    taken: dict[str, dict[int, Taken]] | None = None,
) -> Iterator[tuple[str, Mapping[int, Taken]]]:
    """Every key when it is sure on all its sizes, or when the budget is spent; `run` gives a sample of each kernel.

    When it is stopped, it still gives what has the samples that it needs. `taken` is what there is already of some
    sizes; it grows, and loses the keys that were given.
    """
    end_us = site.now_us() + effort.budget_s * 1e6 * len(wanted)
    taken = {} if taken is None else taken
    for key, each in wanted.items():
        begun = taken.get(key, {})
        taken[key] = {units: begun.get(units) or Taken(1) for units in each.sizes}
    order = sorted({units for each in wanted.values() for units in each.sizes})
    while taken:
        is_stopped, is_over = stopped(), site.now_us() >= end_us
        for key in list(taken):
            found = taken[key].values()
            has_enough = all(each.num_taken >= effort.min_samples for each in found)
            has_some = all(each.num_taken for each in found)
            if all(_is_sure(each, effort) for each in found) or (is_stopped and has_enough) or (is_over and has_some):
                yield key, taken.pop(key)
        if is_stopped:
            raise Stopped
        for units in order:
            asking = {key: each[units] for key, each in taken.items() if units in each}
            if asking and not stopped():
                site.confine(units)
                run()
                _burst_of_runs(run, asking, wanted)
        order.reverse()


def in_turns(taken: Mapping[int, Taken]) -> dict[int, Taken]:
    """As many undisturbed samples of each size as there are of all: what is to be gone on with another day.

    Else the sizes would be compared at different times, and the machine may be another one then.
    """
    num_each = min((len(each.clean_us) for each in taken.values()), default=0)
    if num_each == 0:
        return {}
    return {
        units: Taken(each.calls, each.clean_us[:num_each], num_left_out=each.num_left_out + len(each.disturbed_us))
        for units, each in taken.items()
    }


def half_width(samples_us: Sequence[float]) -> float:
    """Of the 95 % interval of the median, relative to it; by order statistics, so outliers do not widen it.

    >>> half_width([1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    0.0
    """
    ordered = sorted(samples_us)
    middle, reach = (len(ordered) - 1) / 2, Z_95 * sqrt(len(ordered)) / 2
    low = ordered[max(0, floor(middle - reach))]
    high = ordered[min(len(ordered) - 1, ceil(middle + reach))]
    return (high - low) / 2 / ordered[int(middle)]


def _num_calls(site: Site, call: Call, effort: Effort) -> int:
    once_us = min(site.sample(call, 1).us for _ in range(3))
    return max(1, min(MAX_CALLS, ceil(effort.sample_us / max(once_us, 1e-3))))


def _burst(site: Site, call: Call, taken: Taken, cold: bool) -> None:
    for _ in range(BURST):
        if cold:
            site.sweep()
        sample = site.sample(call, taken.calls)
        taken.add(sample)
        if sample.us * taken.calls > SLOW_US:
            return


def _burst_of_runs(
    run: Callable[[], Sequence[Sample]], asking: Mapping[str, Taken], wanted: Mapping[str, Wanted]
) -> None:
    for _ in range(BURST):
        samples = run()
        for key, taken in asking.items():
            for index in wanted[key].indices:
                taken.add(samples[index])
        if sum(sample.us for sample in samples) > SLOW_US:
            return


def _is_sure(taken: Taken, effort: Effort) -> bool:
    if len(taken.clean_us) >= effort.max_samples or len(taken.disturbed_us) >= MAX_DISTURBED * effort.max_samples:
        return True
    return len(taken.clean_us) >= effort.min_samples and half_width(taken.clean_us) <= effort.precision
