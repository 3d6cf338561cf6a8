"""Merged program + the fused programs of its members -> what to call, in which order. Used by backends/ and tests.

A kernel of an `ir.Program` is a node of the exported graph (`Captured.kernel_nodes`), and a step of a fused program
knows its node: that is the mapping. Kernels that an earlier step has taken in (a BatchNorm behind a convolution) need
no call of their own; steps that are no kernel (views, small weights laid out by row) run as soon as what they read is
there. What a merged program puts into one launch is called together where the calls are alike as they are now;
otherwise apart, and a note says why. Calls of one member between two common launches are one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import Ref, Step
from spacetime.capture.merge_likeness import Likeness, Values
from spacetime.errors import PlanError
from spacetime.merged import Form, MergedProgram

GATHERS = ("gather", "gpu_gather")
_BEFORE, _LAUNCH, _AFTER = range(3)
_START = (-1, _AFTER)

When = tuple[int, int]  # step of the merged program, and before, in or after its launch


@dataclass(frozen=True)
class Call:
    """One step of one member. `gathers`: small weights by what reads them; the launch lays them out itself."""

    member: int
    step: Step
    gathers: dict[str, Step] = field(default_factory=dict)

    @property
    def reads(self) -> list[str]:
        """What it is given, without repetition."""
        return [name for name in dict.fromkeys(names_in(self.step)) if name not in self.gathers]


@dataclass(frozen=True)
class Launch:
    """Calls of one or several members that are made together. `alike`: calls of equal numbers do equal work."""

    calls: tuple[Call, ...]
    form: Form
    alike: tuple[int, ...]
    row_dims: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # of a plain operation: of what it reads and writes

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(call.member for call in self.calls))


@dataclass(frozen=True)
class Segment:
    """Steps of one member, as in its own program. `outputs` are those that are read later."""

    member: int
    steps: tuple[Step, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Why kernels that a step puts into one launch are launched apart."""

    step: int
    member: int
    node: str
    reason: str


@dataclass(frozen=True)
class Schedule:
    items: tuple[Launch | Segment, ...]
    dead: tuple[tuple[tuple[int, str], ...], ...]  # after every item: (member, value) that nobody reads any more
    notes: tuple[Note, ...]
    num_launches: int  # of kernels; what is absorbed by another one's call is none
    num_alone: int  # of the members by themselves

    @property
    def saved(self) -> float:
        return 1 - self.num_launches / self.num_alone if self.num_alone else 0.0


def schedule(merged: MergedProgram, cohorts: Sequence[Cohort]) -> Schedule:
    """`cohorts` in the order of the merged program's members."""
    found, wanted = ([p.signature for p in programs] for programs in ([c.program for c in cohorts], merged.programs))
    if found != wanted:
        raise PlanError(
            "a merged program belongs to other cohorts",
            f"its members are {wanted}, the cohorts {found}",
            "give the cohorts in the order of MergedProgram.programs",
        )
    return _Scheduler(merged, cohorts).run()


class _Scheduler:
    def __init__(self, merged: MergedProgram, cohorts: Sequence[Cohort]) -> None:
        self.merged = merged
        self.cohorts = cohorts
        self.likeness = [Likeness(cohort) for cohort in cohorts]
        self.kernels = [
            dict(zip(cohort.captured.kernel_nodes, cohort.program.kernels, strict=True)) for cohort in cohorts
        ]
        self.items: list[Launch | Segment] = []
        self.notes: list[Note] = []
        self.pending: list[list[Step]] = [[] for _ in cohorts]
        self.num_launches = 0

    def run(self) -> Schedule:
        placed: dict[When, list[Call]] = {}
        num_alone = 0
        for member, cohort in enumerate(self.cohorts):
            for when, step, is_kernel in _placed(cohort, self.merged.steps_of[member]):
                placed.setdefault(when, []).append(Call(member, step))
                num_alone += is_kernel
                self.num_launches += is_kernel and when[1] != _LAUNCH
        for when in sorted(placed):
            if when[1] == _LAUNCH:
                self._launch(when[0], placed[when])
            else:
                for call in placed[when]:
                    self.pending[call.member].append(call.step)
        for member in range(len(self.cohorts)):
            self._flush(member)
        items, dead = self._with_lives()
        return Schedule(items, dead, tuple(self.notes), self.num_launches, num_alone)

    def _launch(self, index: int, calls: list[Call]) -> None:
        """Calls that are alike together, the others apart."""
        form = self.merged.steps[index].form
        classes: dict[Values, list[Call]] = {}
        for position, call in enumerate(calls):
            key = self.likeness[call.member].of(call.step, grouped=form == "grouped")
            if isinstance(key, str):
                key = self._apart(index, call, key, position, len(calls))
            classes.setdefault(key, []).append(call)
        if len(classes) > 1:
            for key, found in classes.items():
                if len(found) == 1 and key[0] is not None:
                    self._note(index, found[0], "the others are called in another way")
        for found in classes.values():
            self.num_launches += 1
            if len(found) == 1:
                self.pending[found[0].member].append(found[0].step)
            else:
                self._together(found)

    def _apart(self, index: int, call: Call, reason: str, position: int, num_calls: int) -> Values:
        if num_calls > 1:
            self._note(index, call, reason)
        return (None, position)

    def _note(self, index: int, call: Call, reason: str) -> None:
        self.notes.append(Note(index, call.member, call.step.node, reason))

    def _together(self, calls: list[Call]) -> None:
        numbers: dict[Values, int] = {}
        kernels = [self.kernels[call.member][call.step.node] for call in calls]
        keys = [
            (self.likeness[call.member].of(call.step), kernel.inputs)
            for call, kernel in zip(calls, kernels, strict=True)
        ]
        alike = tuple(numbers.setdefault(key, len(numbers)) for key in keys)
        row_dims = self.likeness[calls[0].member].row_dims(calls[0].step)
        filled = tuple(self._with_gathers(call) for call in calls)
        launch = Launch(filled, "shared" if len(numbers) == 1 else "grouped", alike, row_dims)
        for member in launch.members:
            self._flush(member)
        self.items.append(launch)

    def _with_gathers(self, call: Call) -> Call:
        """Small weights are laid out by the launch itself, so that they have rows whatever the mix."""
        waiting = self.pending[call.member]
        gathers = {step.out: step for step in waiting if step.target == "gather" and step.node == call.step.node}
        self.pending[call.member] = [step for step in waiting if step.out not in gathers]
        return Call(call.member, call.step, gathers)

    def _flush(self, member: int) -> None:
        if self.pending[member]:
            self.items.append(Segment(member, tuple(self.pending[member])))
            self.pending[member] = []

    def _with_lives(self) -> tuple[tuple[Launch | Segment, ...], tuple[tuple[tuple[int, str], ...], ...]]:
        """Backwards: what is read later must be kept, the rest may go."""
        needed = [set(names_in(cohort.fused.outputs)) for cohort in self.cohorts]
        items: list[Launch | Segment] = []
        dead: list[tuple[tuple[int, str], ...]] = []
        for item in reversed(self.items):
            reads: list[tuple[int, str]]
            if isinstance(item, Segment):
                made = {step.out for step in item.steps}
                inputs = [name for name in dict.fromkeys(names_in(item.steps)) if name not in made]
                outputs = [
                    name for name in dict.fromkeys(step.out for step in item.steps) if name in needed[item.member]
                ]
                items.append(Segment(item.member, item.steps, tuple(inputs), tuple(outputs)))
                reads = [(item.member, name) for name in inputs]
            else:
                items.append(item)
                reads = list(dict.fromkeys((call.member, name) for call in item.calls for name in call.reads))
            dead.append(tuple((member, name) for member, name in reads if name not in needed[member]))
            for member, name in reads:
                needed[member].add(name)
        return tuple(reversed(items)), tuple(reversed(dead))


def _placed(cohort: Cohort, step_of: Sequence[int]) -> Iterator[tuple[When, Step, bool]]:
    """Every step of a member with the place where it can run, and whether it is a kernel."""
    kernels = {node: index for index, node in enumerate(cohort.captured.kernel_nodes)}
    fused = cohort.fused
    at: dict[str, When] = dict.fromkeys(fused.inputs, _START)
    for step in fused.steps:
        ready = max((at[name] for name in names_in(step)), default=_START)
        kernel = kernels.get(step.node)
        is_kernel = kernel is not None and step.target not in GATHERS
        if kernel is None:
            when = ready if ready[1] == _BEFORE else (ready[0], _AFTER)
        elif not is_kernel:
            when = max(ready, (step_of[kernel], _BEFORE))
        else:
            # A step that has taken in a later one (a residual) may have to wait for more than its kernel does.
            own = (step_of[kernel], _LAUNCH)
            when = own if ready < own else (ready[0], _AFTER)
        at[step.out] = when
        yield when, step, is_kernel


def names_in(value: object) -> list[str]:
    """The values that something reads: a step, several, or arguments."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, Step):
        return names_in(value.args) + names_in(value.kwargs)
    if isinstance(value, dict):
        return names_in(tuple(value.values()))
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in names_in(item)]
    return []
