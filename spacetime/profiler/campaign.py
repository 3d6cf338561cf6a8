"""Measuring what is not known yet of a program: kernel by kernel, into the store as it goes. `run` calls it; no torch.

Every kernel is measured with the values of a real run of its program, once per key, however often it occurs. What is
in the store already is not measured again, so a run that was interrupted is resumed by running it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Protocol

from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program
from spacetime.profiler.curves import Point
from spacetime.profiler.few_points import Search, search
from spacetime.profiler.measure import Effort, Stopped, Taken, Wanted, in_turns, time_in_runs, time_on_sizes
from spacetime.profiler.profile import BETWEEN, CODE, Ceilings, whole_key
from spacetime.profiler.records import Environment, Key, Measurement
from spacetime.profiler.site import Call, Sample, Site
from spacetime.profiler.store import Store

IDEAL_S = 0.2  # for each ideal kernel: its best sample counts, so a few will do
RUN = "run"
CEILING = "ceiling:"  # keys of the device's ideal kernels


class Surrounding(Protocol):
    """What a run of a program shows beside its kernels."""

    @property
    def has_code(self) -> bool:
        """Is the time between its kernels that of the module's own code? Else it is that of a plain run of them."""

    @property
    def wholes(self) -> Sequence[tuple[int, int]]:
        """The first kernel and the last of every operation that the module calls as one."""


class Runnable(Surrounding, Protocol):
    """A program that can be run kernel by kernel."""

    def kernels(self, rows: int) -> Iterator[tuple[int, Call]]:
        """(index, a call that repeats it), in order; a call is good until the next one is asked for."""

    def time(self, rows: int, site: Site) -> Sequence[Sample]:
        """A sample of every kernel from one run, one of what lies between them, and one of each whole operation."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a profile is."""

    done: int  # kernels, each at every row count
    total: int
    kernel: str  # the name of the last
    num_known: int  # of those done: not measured now
    num_stale: int = 0  # of those done: measured again, since what is known of them was measured under other conditions
    changes: tuple[str, ...] = ()  # how these differed, a line each
    num_begun: int = 0  # of those that are not done: what there is of them is kept, and gone on with


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured once: all kernels of one key, what lies between a program's kernels, a whole operation."""

    key: str
    name: str
    op: str
    dtype: str
    indices: tuple[int, ...]


@dataclass(eq=False)
class _Curve:
    """A subject on its way: what is found, and the sizes that are asked for next; none: it is all there."""

    subject: Subject
    asking: Search
    found: dict[int, Taken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes: Sequence[int] = next(self.asking)

    def feed(self, taken: Mapping[int, Taken]) -> None:
        self.found |= taken
        try:
            self.sizes = self.asking.send([Point(units, taken[units].samples_us) for units in self.sizes])
        except StopIteration:
            self.sizes = ()


@dataclass
class Campaign:
    """One program on one site."""

    program: Program
    site: Site
    store: Store
    rows: Sequence[int]
    sizes: Sequence[int]  # exactly these if `exact`, else as many of them as it takes to know the curve
    exact: bool
    tolerance: float
    cache: str
    effort: Effort
    progress: Callable[[Progress], None]
    stopped: Callable[[], bool]
    known: dict[Key, Measurement] = field(default_factory=dict)
    begun: Mapping[Key, Measurement] = field(default_factory=dict)  # of runs that were interrupted
    stale: Mapping[Key, tuple[Environment, Measurement]] = field(default_factory=dict)  # measured elsewhere, not here
    _used: list[Measurement] = field(default_factory=list)
    _done: int = 0
    _last: Progress = field(default_factory=lambda: Progress(0, 0, "", 0))
    _num_known: int = 0
    _num_stale: int = 0
    _changes: tuple[str, ...] = ()

    def run(self, runnable: Runnable) -> tuple[Measurement, ...]:
        """All measurements of the program's kernels, known ones included. On the site's thread."""
        subjects = subjects_of(self.program, with_between=self.cache == RUN, surrounding=runnable)
        self._last = Progress(0, len(subjects) * len(self.rows), "", 0)
        for rows in self.rows:
            missing = [each for each in subjects if not self._is_known(each, rows)]
            for each in subjects:
                if each not in missing:
                    self._report(each, rows, len(subjects), known=True)
            if missing:
                measured = self._in_runs if self.cache == RUN else self._one_by_one
                for each in measured(runnable, rows, missing):
                    self._report(each, rows, len(subjects), known=False)
        return self._sorted(subjects)

    def recall(self, surrounding: Surrounding) -> tuple[Ceilings, tuple[Measurement, ...]] | None:
        """What `ceilings` and `run` would give, where all of it is known: nothing is run. None: something is not.

        A campaign that was asked this is over.
        """
        if any(self._ceiling_key(name) not in self.known for name in self.site.ideals()):
            return None
        subjects = subjects_of(self.program, with_between=self.cache == RUN, surrounding=surrounding)
        wanted = [(each, rows) for rows in self.rows for each in subjects]
        if not all(self._is_known(each, rows) for each, rows in wanted):
            return None
        for each, rows in wanted:
            self._report(each, rows, len(subjects), known=True)
        return self.ceilings(), self._sorted(subjects)

    def _sorted(self, subjects: Sequence[Subject]) -> tuple[Measurement, ...]:
        place = {subject.key: index for index, subject in enumerate(subjects)}
        return tuple(sorted(self._used, key=lambda each: (each.key.rows, place[each.key.kernel], each.key.units)))

    def ceilings(self) -> Ceilings:
        """What the whole device reaches on its ideal kernels."""
        best_us = {}
        whole = self.site.sizes[-1]
        for name, ideal in self.site.ideals().items():
            key = self._ceiling_key(name)
            if key not in self.known:
                taken = self._time(
                    ideal.make(), [whole], replace(self.effort, budget_s=min(self.effort.budget_s, IDEAL_S))
                )
                self._keep([self._measurement(key, name, "float32", taken[whole])])
            best_us[name] = min(self.known[key].samples_us) / ideal.amount
        return Ceilings(1 / best_us["compute"], 1 / best_us["bandwidth"], best_us["launch"])

    def _ceiling_key(self, name: str) -> Key:
        return Key(CEILING + name, 1, self.site.sizes[-1], self.cache)

    # -- one row count --------------------------------------------------------------------------------

    def _is_known(self, subject: Subject, rows: int) -> bool:
        """Do the known points answer everything that would be asked? Then they are used."""
        asked = self._search()
        sizes = next(asked)
        used: list[Measurement] = []
        while True:
            keys = [self._key(subject, rows, units) for units in sizes]
            if any(key not in self.known for key in keys):
                return False
            used += [self.known[key] for key in keys]
            try:
                sizes = asked.send([self.known[key].point for key in keys])
            except StopIteration:
                self._used += used
                return True

    def _one_by_one(self, runnable: Runnable, rows: int, missing: Sequence[Subject]) -> Iterator[Subject]:
        left = {subject.indices[0]: subject for subject in missing}
        for index, call in runnable.kernels(rows):
            if self.stopped():
                raise Stopped
            if index not in left:
                continue
            curve = _Curve(left.pop(index), self._search())
            while curve.sizes:
                taken = self._begun(curve, rows)
                try:
                    curve.feed(self._time(call, curve.sizes, self.effort, taken))
                except Stopped:
                    self._keep_begun([(curve, taken)], rows)
                    raise
            yield self._keep_curve(curve, rows)
            if not left:
                return
        names = ", ".join(subject.name for subject in left.values())
        raise OptionError(
            "a program did not run as it was captured", f"it left out {names}", "capture the module again"
        )

    def _in_runs(self, runnable: Runnable, rows: int, missing: Sequence[Subject]) -> Iterator[Subject]:
        curves = {subject.key: _Curve(subject, self._search()) for subject in missing}
        while curves:
            wanted = {key: Wanted(curve.subject.indices, tuple(curve.sizes)) for key, curve in curves.items()}
            taken = {key: self._begun(curve, rows) for key, curve in curves.items()}
            run = partial(runnable.time, rows, self.site)
            try:
                for key, found in time_in_runs(self.site, run, wanted, self.effort, stopped=self.stopped, taken=taken):
                    curves[key].feed(found)
                    if not curves[key].sizes:
                        yield self._keep_curve(curves.pop(key), rows)
            except Stopped:
                self._keep_begun([(curve, taken.get(key, {})) for key, curve in curves.items()], rows)
                raise

    def _search(self) -> Search:
        return search(self.sizes, self.tolerance, exact=self.exact)

    def _time(
        self, call: Call, sizes: Sequence[int], effort: Effort, taken: dict[int, Taken] | None = None
    ) -> Mapping[int, Taken]:
        is_cold = self.cache == "cold"
        return time_on_sizes(self.site, call, sizes, effort, cold=is_cold, stopped=self.stopped, taken=taken)

    # -- book-keeping ---------------------------------------------------------------------------------

    def _key(self, subject: Subject, rows: int, units: int) -> Key:
        return Key(subject.key, rows, units, self.cache)

    def _keep_curve(self, curve: _Curve, rows: int) -> Subject:
        """Kept when all of it is there: half a curve was not measured in turns."""
        subject = curve.subject
        measurements = [
            self._measurement(self._key(subject, rows, units), subject.op, subject.dtype, taken)
            for units, taken in curve.found.items()
        ]
        self._keep(measurements)
        self._used += measurements
        return subject

    def _begun(self, curve: _Curve, rows: int) -> dict[int, Taken]:
        """What an interrupted run has left of the sizes that are asked for: all of them, or it was another question."""
        begun = [self.begun.get(self._key(curve.subject, rows, units)) for units in curve.sizes]
        known = [each for each in begun if each is not None]
        if len(known) < len(begun):
            return {}
        return in_turns(
            {each.key.units: Taken(each.calls, [*each.samples_us], num_left_out=each.num_disturbed) for each in known}
        )

    def _keep_begun(self, curves: Sequence[tuple[_Curve, Mapping[int, Taken]]], rows: int) -> None:
        """Of each the sizes that it has done, and of those it asks for what they have in common."""
        found = {curve: {**curve.found, **in_turns(taken)} for curve, taken in curves}
        measurements = [
            self._measurement(self._key(curve.subject, rows, units), curve.subject.op, curve.subject.dtype, each)
            for curve, sizes in found.items()
            for units, each in sizes.items()
        ]
        self.store.begun.append(self.site.environment, measurements)
        self.progress(replace(self._last, num_begun=sum(map(bool, found.values()))))

    def _measurement(self, key: Key, op: str, dtype: str, taken: Taken) -> Measurement:
        return Measurement(
            key=key,
            op=op,
            dtype=dtype,
            samples_us=tuple(round(us, 4) for us in taken.samples_us),
            calls=taken.calls,
            overhead_us=round(self.site.overhead_us, 4),
            num_disturbed=taken.num_disturbed,
            method="measured",
            date=datetime.now(UTC).date().isoformat(),
        )

    def _keep(self, measurements: Sequence[Measurement]) -> None:
        self.store.append(self.site.environment, measurements)
        self.known |= {measurement.key: measurement for measurement in measurements}

    def _report(self, subject: Subject, rows: int, num_subjects: int, *, known: bool) -> None:
        self._done += 1
        self._num_known += known
        elsewhere = None if known else self._elsewhere.get((subject.key, rows))
        if elsewhere is not None:
            self._num_stale += 1
            self._changes = self.site.environment.differences(elsewhere)
        self._last = Progress(
            self._done, num_subjects * len(self.rows), subject.name, self._num_known, self._num_stale, self._changes
        )
        self.progress(self._last)

    @cached_property
    def _elsewhere(self) -> Mapping[tuple[str, int], Environment]:
        """Where else the kernels were measured last, by what they are and their number of rows."""
        alike = {key: place for key, (place, _) in self.stale.items() if key.cache == self.cache}
        return {(key.kernel, key.rows): place for key, place in alike.items()}


def subjects_of(program: Program, *, with_between: bool, surrounding: Surrounding | None = None) -> list[Subject]:
    """Every key once, in the order of the kernels; then what only runs show, of which `surrounding` tells."""
    kernels: dict[str, list[Kernel]] = {}
    for kernel in program.kernels:
        kernels.setdefault(kernel.key, []).append(kernel)
    subjects = [
        Subject(key, same[0].name, same[0].op, same[0].outputs[0].dtype, tuple(kernel.index for kernel in same))
        for key, same in kernels.items()
    ]
    if not with_between:
        return subjects
    num_kernels = len(program.kernels)
    between = (CODE if surrounding is not None and surrounding.has_code else BETWEEN) + program.signature
    subjects.append(Subject(between, "between kernels", "between", "", (num_kernels,)))
    for place, (first, last) in enumerate(surrounding.wholes if surrounding is not None else (), num_kernels + 1):
        key, name = whole_key(first, last, program.signature), program.kernels[first].name
        subjects.append(Subject(key, f"{name}, whole", "whole", program.kernels[last].outputs[0].dtype, (place,)))
    return subjects
