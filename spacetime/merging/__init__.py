"""Aligns programs of different cohorts into merged programs. Runtimes, policies and benches import it; no torch."""

from spacetime.merging.align import align, canonical, gained
from spacetime.merging.bound import fewest_launches
from spacetime.merging.cache import MergeCache
from spacetime.merging.explain import KernelFate, MergeExplanation, explain
from spacetime.merging.gains import Launches, PredictedTime, Weights
from spacetime.merging.recurrences import Recurrences
from spacetime.merging.worth import Worth, worth
from spacetime.plan import Load

__all__ = [
    "KernelFate",
    "Launches",
    "Load",
    "MergeCache",
    "MergeExplanation",
    "PredictedTime",
    "Recurrences",
    "Weights",
    "Worth",
    "align",
    "canonical",
    "explain",
    "fewest_launches",
    "gained",
    "worth",
]
