"""Sets of members that recur: told once, and forgotten in time."""

from __future__ import annotations

from spacetime.merging import Recurrences


def test_a_set_is_told_of_once() -> None:
    found = Recurrences(times=3)
    assert [found.note(("a", "b")) for _ in range(5)] == [False, False, True, False, False]
    assert not found.note(("a", "c"))


def test_what_leaves_takes_its_sets_along() -> None:
    found = Recurrences(times=2)
    for active in (("a", "b"), ("b", "c")):
        found.note(active)
    found.forget(["a"])
    assert not found.note(("a", "b")) and found.note(("b", "c"))
    found.forget_set(("a", "b"))
    assert not found.note(("a", "b"))


def test_it_is_bounded() -> None:
    found = Recurrences(times=2, capacity=2)
    for active in (("a", "b"), ("a", "c"), ("a", "b"), ("a", "d")):
        found.note(active)
    assert len(found) == 2 and not found.note(("a", "c")), "what was not told of longest is forgotten"
