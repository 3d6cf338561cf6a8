"""Merged programs: kernels of unlike programs in one launch, as values. Bottom layer, no torch; anybody may import it.

A merged program holds several programs and the steps in which they run together. Every kernel of every program is in
exactly one step, and what it reads was written in earlier steps. Members share launches and nothing else: rows, weights
and outputs stay each member's own.

What counts: a step is one launch, a kernel that runs by itself is one launch (`ir.Kernel`s are what launches;
capture/ drops what only relabels memory). `saved` is 1 - steps / kernels of the members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from spacetime.errors import OptionError, PlanError
from spacetime.ir import Kernel, Program
from spacetime.values import Value

Form = Literal["alone", "shared", "grouped"]


@dataclass(frozen=True, slots=True)
class Part(Value):
    """One kernel of one member."""

    member: int  # index into MergedProgram.programs
    kernel: int  # Kernel.index in that program


@dataclass(frozen=True, slots=True)
class Step(Value):
    """One launch: of one kernel, of equal ones over all their weights, or of a group of unlike shapes."""

    parts: tuple[Part, ...]  # by member, then kernel; siblings (q, k and v) put several of one member into a step
    form: Form

    @property
    def members(self) -> tuple[int, ...]:
        """Without repetition, in the order of the parts."""
        return tuple(dict.fromkeys(part.member for part in self.parts))


@dataclass(frozen=True)
class MergedProgram(Value):
    """Programs aligned into one. It is verified when it is made, so whoever holds one may run it."""

    programs: tuple[Program, ...]  # one for every cohort
    steps: tuple[Step, ...]  # in execution order

    def __post_init__(self) -> None:
        verify(self.programs, self.steps)

    @property
    def num_launches(self) -> int:
        return len(self.steps)

    @cached_property
    def num_alone(self) -> int:
        """Launches of the members one after another, each by itself."""
        return sum(len(program.kernels) for program in self.programs)

    @property
    def saved(self) -> float:
        """The part of the members' own launches that merging spares."""
        return 1 - self.num_launches / self.num_alone if self.num_alone else 0.0

    @cached_property
    def num_products_alone(self) -> int:
        """Of `num_alone`, matrix products, convolutions and attention: where the time goes."""
        return sum(map(num_products, self.programs))

    @cached_property
    def num_products(self) -> int:
        return sum(is_product(self.kernel(step.parts[0])) for step in self.steps)

    @property
    def products_saved(self) -> float:
        """`saved`, of launches of products only."""
        return 1 - self.num_products / self.num_products_alone if self.num_products_alone else 0.0

    @cached_property
    def steps_of(self) -> tuple[tuple[int, ...], ...]:
        """`steps_of[member][kernel]` is the step that holds it."""
        found = [[0] * len(program.kernels) for program in self.programs]
        for index, step in enumerate(self.steps):
            for part in step.parts:
                found[part.member][part.kernel] = index
        return tuple(map(tuple, found))

    def kernel(self, part: Part) -> Kernel:
        return self.programs[part.member].kernels[part.kernel]

    def kernels(self, step: Step) -> tuple[Kernel, ...]:
        return tuple([self.programs[part.member].kernels[part.kernel] for part in step.parts])

    def restrict(self, members: Sequence[int]) -> MergedProgram:
        """The same steps with these members only, numbered anew in their present order; empty steps vanish."""
        kept = sorted(set(members))
        if not kept or kept[0] < 0 or kept[-1] >= len(self.programs):
            raise OptionError(
                f"a merged program cannot be restricted to members {list(members)}",
                f"it has {len(self.programs)} members, counted from 0",
                "name at least one of them",
            )
        if len(kept) == len(self.programs):
            return self
        renumbered = {member: index for index, member in enumerate(kept)}
        steps = []
        for step in self.steps:
            parts = [part for part in step.parts if part.member in renumbered]
            if parts:
                form = step.form if len(parts) == len(step.parts) else self._form(step.form, parts)
                steps.append(Step(tuple([Part(renumbered[part.member], part.kernel) for part in parts]), form))
        return replace(self, programs=tuple([self.programs[member] for member in kept]), steps=tuple(steps))

    def _form(self, form: Form, parts: list[Part]) -> Form:
        """Of what is left of a step."""
        if len(parts) == 1:
            return "alone"
        first, *others = [self.kernel(part) for part in parts]
        return "shared" if form == "shared" or all(is_same_work(first, other) for other in others) else "grouped"

    def __str__(self) -> str:
        lines = [
            f"{len(self.programs)} programs merged: {self.num_alone} launches in {self.num_launches} "
            f"({self.saved:.0%} saved)"
        ]
        for index, step in enumerate(self.steps):
            names = ", ".join(f"{part.member}.{self.kernel(part).name}" for part in step.parts)
            lines.append(f"  {index:4d} {step.form:<8} {self.kernel(step.parts[0]).op:<24} {names}")
        return "\n".join(lines)


def is_same_work(one: Kernel, other: Kernel) -> bool:
    """Equal `Kernel.key`s, without printing them."""
    return one.op == other.op and one.attributes == other.attributes and one.inputs == other.inputs


def is_product(kernel: Kernel) -> bool:
    return kernel.kind != "other"


def num_products(program: Program) -> int:
    return sum(map(is_product, program.kernels))


def dtype_of(kernel: Kernel) -> str:
    """Of what it writes."""
    return kernel.outputs[0].dtype if kernel.outputs else ""


def verify(programs: Sequence[Program], steps: Sequence[Step]) -> None:
    """Raise a PlanError unless every kernel has one step, after those it reads from, with kernels of its kind."""
    placed: list[list[int]] = [[-1] * len(program.kernels) for program in programs]
    for index, step in enumerate(steps):
        for part in step.parts:
            if not 0 <= part.member < len(programs) or not 0 <= part.kernel < len(placed[part.member]):
                raise _broken(index, f"there is no kernel {part.kernel} of a member {part.member}")
            if placed[part.member][part.kernel] >= 0:
                raise _broken(index, f"{_name(programs, part)} is already in step {placed[part.member][part.kernel]}")
            placed[part.member][part.kernel] = index
        _verify_form(programs, index, step)
    for member, (program, found) in enumerate(zip(programs, placed, strict=True)):
        for kernel, at in zip(program.kernels, found, strict=True):
            if at < 0:
                raise _broken(None, f"no step holds {_name(programs, Part(member, kernel.index))}")
            for dep in kernel.deps:
                if found[dep] >= at:
                    raise _broken(
                        at,
                        f"{_name(programs, Part(member, kernel.index))} reads what "
                        f"{_name(programs, Part(member, dep))} writes in step {found[dep]}, which is not earlier",
                    )


def _verify_form(programs: Sequence[Program], index: int, step: Step) -> None:
    if step.form not in get_args(Form):
        raise _broken(index, f"{step.form!r} is no form; there are {', '.join(get_args(Form))}")
    if not step.parts or (step.form == "alone") != (len(step.parts) == 1):
        raise _broken(index, f"{len(step.parts)} kernels cannot be launched as {step.form!r}")
    first = programs[step.parts[0].member].kernels[step.parts[0].kernel]
    for part in step.parts[1:]:
        kernel = programs[part.member].kernels[part.kernel]
        if step.form == "shared":
            fits = is_same_work(first, kernel)
        else:
            fits = first.op == kernel.op and dtype_of(first) == dtype_of(kernel)
        if not fits:
            wanted = "the same work" if step.form == "shared" else "the same operation and dtype"
            raise _broken(
                index, f"{_name(programs, step.parts[0])} and {_name(programs, part)} are not {wanted}, yet {step.form}"
            )


def _name(programs: Sequence[Program], part: Part) -> str:
    kernel = programs[part.member].kernels[part.kernel]
    return f"kernel {part.kernel} of member {part.member} ({kernel.op} {kernel.name})"


def _broken(step: int | None, facts: str) -> PlanError:
    where = "a merged program is incomplete" if step is None else f"step {step} of a merged program cannot run"
    return PlanError(where, facts, "align the programs with spacetime.merging.align, which makes no such steps")
