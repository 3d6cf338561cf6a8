"""The forms that a graph can have: of one mix, or of any mix of a cohort or of a merged lane. For graphs.py only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacetime.backends.cuda.anymerged import MergedGraph, MergedMix, MergedRecipe, capture_merged
from spacetime.backends.cuda.anymix import AnyGraph, AnyRecipe, capture_any
from spacetime.backends.cuda.captured import Graph, Mix, Recipe, capture
from spacetime.backends.cuda.gpu import Gpu
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable

Made = Graph | AnyGraph | MergedGraph
AMix = Mix | MergedMix
ARecipe = Recipe | AnyRecipe | MergedRecipe
Fused = CohortExecutable | MergedExecutable


def mix_of(executable: Executable, lane: Lane, calls: Sequence[Any]) -> AMix | None:
    """The lane as what a graph may be made of; None for what is never captured."""
    if isinstance(executable, MergedExecutable):
        return MergedMix.of(executable, lane, calls) if lane.fused else None
    if isinstance(executable, CohortExecutable) and (lane.fused or len(lane.requests) == 1):
        return Mix.of(executable, lane, calls)
    return None


def captured(gpu: Gpu, grant: Grant, executable: Fused, recipe: ARecipe) -> Made:
    """`executable` is what the recipe's is."""
    if isinstance(recipe, MergedRecipe):
        assert isinstance(executable, MergedExecutable)
        return capture_merged(gpu, grant, executable, recipe)
    assert isinstance(executable, CohortExecutable)
    if isinstance(recipe, AnyRecipe):
        return capture_any(gpu, grant, executable, recipe)
    return capture(gpu, grant, executable, recipe)


def name_of(executable: Fused) -> str:
    if isinstance(executable, MergedExecutable):
        return f"merged {executable.name}"
    return f"cohort {executable.cohort.program.signature}"
