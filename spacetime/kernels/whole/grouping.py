"""Operations one by one -> as few stages as there can be: neighbours of one shape become one pass over the memory.

What only the pass itself reads stays in registers. What others read gets a place in the scratch memory, which it leaves
to others when its last reader is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spacetime.kernels.whole.script import Argument, Buffer, Operation, Place, Pointwise, Result, Shape, Stage, View

_ALIGNMENT = 16  # floats: a cache line


@dataclass(frozen=True, slots=True)
class Draft:
    """One operation, and where its result would lie."""

    operation: Operation
    to: View


def grouped(drafts: Sequence[Draft | Stage]) -> tuple[tuple[Stage, ...], int]:
    """The stages, and the floats of scratch memory that they need."""
    stages = _without_unread(list(_group(drafts)))
    places, floats = _allocate(stages)
    return tuple(_placed(stage, places) for stage in stages), floats


@dataclass
class _Group:
    shape: Shape
    operations: list[Operation] = field(default_factory=list)
    stores: list[tuple[int, View]] = field(default_factory=list)
    results: dict[View, int] = field(default_factory=dict)
    written: set[Buffer] = field(default_factory=set)

    def takes(self, draft: Draft) -> bool:
        """Whatever it reads of our results, it reads in our order."""
        views = [view for view in draft.operation.arguments if isinstance(view, View)]
        return draft.to.shape == self.shape and all(
            view in self.results or view.buffer not in self.written for view in views
        )

    def take(self, draft: Draft) -> None:
        arguments = tuple(
            [Result(self.results[given]) if given in self.results else given for given in draft.operation.arguments]
        )
        number = self._number(Operation(draft.operation.name, arguments))
        self.stores.append((number, draft.to))
        self.results[draft.to] = number
        self.written.add(draft.to.buffer)

    def _number(self, operation: Operation) -> int:
        if operation.name == "copy" and isinstance(operation.arguments[0], Result):
            return operation.arguments[0].number
        if operation in self.operations:
            return self.operations.index(operation)
        self.operations.append(operation)
        return len(self.operations) - 1

    def stage(self) -> Pointwise:
        return Pointwise(self.shape, tuple(self.operations), tuple(self.stores))


def _group(drafts: Sequence[Draft | Stage]) -> Iterator[Stage]:
    group: _Group | None = None
    for draft in drafts:
        if group is not None and not (isinstance(draft, Draft) and group.takes(draft)):
            yield group.stage()
            group = None
        if isinstance(draft, Draft):
            group = group or _Group(draft.to.shape)
            group.take(draft)
        else:
            yield draft
    if group is not None:
        yield group.stage()


_WRITTEN = ("y", "scores")  # the fields of stages


def _views(stage: Stage) -> dict[str, View]:
    """By field."""
    given = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
    return {name: value for name, value in given.items() if isinstance(value, View)}


def reads(stage: Stage) -> Iterator[View]:
    if not isinstance(stage, Pointwise):
        yield from [view for name, view in _views(stage).items() if name not in _WRITTEN]
        return
    for operation in stage.operations:
        yield from [given for given in operation.arguments if isinstance(given, View)]


def writes(stage: Stage) -> Iterator[View]:
    if isinstance(stage, Pointwise):
        yield from [view for _, view in stage.stores]
    else:
        yield from [view for name, view in _views(stage).items() if name in _WRITTEN]


def _without_unread(stages: Sequence[Stage]) -> list[Stage]:
    read = {view.buffer for stage in stages for view in reads(stage)}

    def wanted(view: View) -> bool:
        return view.buffer in read or view.buffer.place is Place.OUTPUT

    def without(stage: Stage) -> Stage:
        if not isinstance(stage, Pointwise):
            return stage
        return replace(stage, stores=tuple([(number, view) for number, view in stage.stores if wanted(view)]))

    return [without(stage) for stage in stages]


def _allocate(stages: Sequence[Stage]) -> tuple[dict[Buffer, int], int]:
    """Where each buffer lies in the scratch memory, and the size of that."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for number, stage in enumerate(stages):
        for view in (*reads(stage), *writes(stage)):
            if view.buffer.place is Place.SCRATCH:
                first.setdefault(view.buffer, number)
                last[view.buffer] = number
    places: dict[Buffer, int] = {}
    total = 0
    for buffer, begin in first.items():
        taken = sorted((places[other], other.floats) for other in places if last[other] >= begin)
        place = 0
        for start, floats in taken:
            if place + buffer.floats <= start:
                break
            place = max(place, _aligned(start + floats))
        places[buffer] = place
        total = max(total, _aligned(place + buffer.floats))
    return places, total


def _aligned(floats: int) -> int:
    return -(-floats // _ALIGNMENT) * _ALIGNMENT


def _placed(stage: Stage, places: dict[Buffer, int]) -> Stage:
    """The stage with views of the one scratch memory."""

    def moved(view: View) -> View:
        if view.buffer.place is not Place.SCRATCH:
            return view
        return replace(view, buffer=Buffer(Place.SCRATCH, 0, 0), offset=view.offset + places[view.buffer])

    def given(argument: Argument) -> Argument:
        return moved(argument) if isinstance(argument, View) else argument

    if not isinstance(stage, Pointwise):
        places_of: dict[str, Any] = {name: moved(view) for name, view in _views(stage).items()}
        return replace(stage, **places_of)
    operations = tuple(
        Operation(operation.name, tuple(map(given, operation.arguments))) for operation in stage.operations
    )
    return replace(stage, operations=operations, stores=tuple((number, moved(view)) for number, view in stage.stores))
