"""The cache: what is aligned once, what is restricted, what is refined and what is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program
from spacetime.merged import verify
from spacetime.merging import Launches, MergeCache, gained
from spacetime.merging.gains import Gains
from tests.merging.programs import chain, mixes

MIX = [chain("a", "8 16 8"), chain("b", "16 8"), chain("c", "8 8")]


class Counting(Launches):
    """Counts how often programs are aligned: each time asks once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def gains(self, kernels: Sequence[Kernel]) -> Gains:
        self.asked += 1
        return super().gains(kernels)


def test_residents_are_aligned_once_in_any_order() -> None:
    weights = Counting()
    cache = MergeCache(weights)
    merged = cache.resident(MIX)
    assert cache.resident(MIX[::-1]) is merged
    assert weights.asked == 1


def test_a_subset_is_restricted_without_aligning() -> None:
    weights = Counting()
    cache = MergeCache(weights)
    merged = cache.resident(MIX)
    subset = cache.active(merged, ["c", "a"])
    assert [program.signature for program in subset.programs] == ["a", "c"]
    assert subset == merged.restrict([0, 2])
    assert cache.active(merged, ["a", "c"]) is subset
    assert weights.asked == 1


def test_who_is_active_but_not_resident_is_named() -> None:
    cache = MergeCache()
    with pytest.raises(OptionError, match="unknown signatures: z"):
        cache.active(cache.resident(MIX), ["a", "z"])


@settings(max_examples=50, deadline=None)
@given(mixes(2, 4), st.data())
def test_refining_never_loses(mix: list[Program], data: st.DataObject) -> None:
    cache = MergeCache()
    merged = cache.resident(mix)
    members = data.draw(st.sets(st.sampled_from([program.signature for program in mix]), min_size=1))
    restricted = cache.active(merged, members)
    refined = cache.refine(restricted)
    verify(refined.programs, refined.steps)
    assert refined.programs == restricted.programs
    assert gained(refined) >= gained(restricted)
    assert cache.active(merged, members) is refined


@settings(max_examples=25, deadline=None)
@given(mixes())
def test_what_is_gained_by_counting_is_the_launches_saved(mix: list[Program]) -> None:
    merged = MergeCache().resident(mix)
    assert gained(merged) == merged.num_alone - merged.num_launches


def test_what_was_not_asked_for_longest_is_forgotten() -> None:
    weights = Counting()
    cache = MergeCache(weights, capacity=2)
    first, second, third = ([program] for program in MIX)
    cache.resident(first)
    cache.resident(second)
    cache.resident(first)  # used again: the second is older now
    cache.resident(third)
    assert len(cache) == 2 and weights.asked == 3
    cache.resident(first)
    assert weights.asked == 3
    cache.resident(second)
    assert weights.asked == 4


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one"):
        MergeCache(capacity=0)


def test_threads_that_ask_at_once_get_one_answer() -> None:
    cache, answers = MergeCache(), []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        answers.append(cache.resident(MIX))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(answer) for answer in answers}) == 1
