"""Unit allocation: both forms against a slow, obvious reading of the rule, and what the rule is for."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.plan import Placement
from spacetime.scheduler.allocation import ORDERS, UNLIMITED, Allocator, first_atom, mask
from spacetime.scheduler.masks import CONSERVED, DISTRIBUTED, PACKED, order_code, place, places

LIMITS = [0, 1, 2, 5, UNLIMITED]
MI50 = Device("four engines of fifteen", "model", num_units=60, num_groups=4)

Case = tuple[list[int], int, int, str, int]  # counters, groups, wanted, order, max_overlap


@st.composite
def cases(draw: st.DrawFn, most_held: int = 6) -> Case:
    counters = draw(st.lists(st.integers(0, most_held), min_size=1, max_size=40))
    num_groups = draw(st.integers(1, 9))  # more groups than atoms, and uneven ones, included
    wanted = draw(st.integers(1, len(counters) + 1))
    return counters, num_groups, wanted, draw(st.sampled_from(ORDERS)), draw(st.sampled_from(LIMITS))


def groups_of(num_atoms: int, num_groups: int) -> list[range]:
    starts = [group * num_atoms // num_groups for group in range(num_groups + 1)]
    return [range(first, end) for first, end in pairwise(starts)]


def expected(counters: list[int], num_groups: int, wanted: int, order: str, max_overlap: int) -> list[int]:
    """Atom by atom."""
    groups = groups_of(len(counters), num_groups)
    free = [[atom for atom in atoms if counters[atom] <= max_overlap] for atoms in groups]
    for atoms in free:
        atoms.sort(key=lambda atom: (counters[atom], atom))
    ranked = sorted(range(num_groups), key=lambda group: (sum(counters[atom] for atom in groups[group]), group))
    wanted = min(wanted, sum(map(len, free)))
    if order == "conserved":
        by_room = sorted(ranked, key=lambda group: -len(free[group]))
        count = next(n for n in range(num_groups + 1) if sum(len(free[group]) for group in by_room[:n]) >= wanted)
        first = ranked[:count]
        ranked = first if sum(len(free[group]) for group in first) >= wanted else by_room[:count]
    chosen: list[int] = []
    while len(chosen) < wanted:
        for group in ranked:
            if order == "packed":
                chosen += free[group]
            elif free[group]:
                chosen.append(free[group].pop(0))
    return sorted(chosen[:wanted])


def compiled(counters: list[int], num_groups: int, wanted: int, order: str, max_overlap: int) -> list[int]:
    chosen = np.full(places(len(counters), num_groups), -7, dtype=np.int32)
    held = np.array(counters, dtype=np.int32)
    granted = place(held, num_groups, wanted, order_code(order), max_overlap, chosen)
    assert held.tolist() == counters
    return chosen[:granted].tolist()


def device_of(num_atoms: int, num_groups: int) -> Device:
    return Device("any", "model", num_units=num_atoms * 3 + 2, units_per_atom=3, num_groups=num_groups)


def as_held(counters: list[int]) -> list[int]:
    """Lanes that hold the atoms so often."""
    return [as_mask([a for a, count in enumerate(counters) if count > c]) for c in range(max(counters))]


def as_mask(atoms: list[int]) -> int:
    return sum(1 << atom for atom in atoms)


@given(cases())
def test_both_forms_are_the_reference(case: Case) -> None:
    counters, num_groups, wanted, order, max_overlap = case
    atoms = expected(*case)
    assert compiled(*case) == atoms
    found = mask(device_of(len(counters), num_groups), as_held(counters), wanted, Placement(order, max_overlap))
    assert found == as_mask(atoms)


@given(cases(most_held=1 << 20))
def test_counters_may_be_large(case: Case) -> None:
    assert compiled(*case) == expected(*case)


@given(cases(most_held=2), st.lists(st.integers(1, 40), max_size=30))
def test_an_allocator_counts_what_it_grants(case: Case, wants: list[int]) -> None:
    counters, num_groups, _, order, max_overlap = case
    device = device_of(len(counters), num_groups)
    allocator = Allocator(device, Placement(order, max_overlap), as_held(counters))
    for wanted in wants:
        atoms = expected(counters, num_groups, wanted, order, max_overlap)
        assert allocator.take(wanted) == as_mask(atoms)
        for atom in atoms:
            counters[atom] += 1


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(ORDERS),
    st.sampled_from([0, 1, 2, 5]),
    st.lists(st.integers(1, 6), max_size=20),
)
def test_lanes_may_be_granted_together(
    counters: list[int], num_groups: int, order: str, max_overlap: int, wants: list[int]
) -> None:
    """Few atoms and many lanes: counters reach what they may."""
    device, placement = Device("any", "model", len(counters), num_groups=num_groups), Placement(order, max_overlap)
    held = [sum(1 << atom for atom, count in enumerate(counters) if count > lane) for lane in range(max(counters))]
    allocator = Allocator(device, placement, held)
    granted = [*allocator.take_each(wants), allocator.take(2)]
    for wanted, atoms in zip([*wants, 2], granted, strict=True):
        chosen = expected(counters, num_groups, wanted, order, max_overlap)
        assert atoms == sum(1 << atom for atom in chosen)
        counters = [count + (atom in chosen) for atom, count in enumerate(counters)]


@given(cases())
def test_what_the_rule_promises(case: Case) -> None:
    counters, num_groups, wanted, order, max_overlap = case
    atoms, groups = compiled(*case), groups_of(len(counters), num_groups)
    free = [atom for atom, count in enumerate(counters) if count <= max_overlap]
    assert set(atoms) <= set(free)
    assert len(set(atoms)) == len(atoms) == min(wanted, len(free))
    taken = [len(set(atoms) & set(group)) for group in groups]
    room = [len(set(free) & set(group)) for group in groups]
    used = [group for group in range(num_groups) if taken[group]]
    if order != "distributed":  # as few groups as will do ...
        fewer = combinations(room, max(0, len(used) - 1))
        assert not used or order == "packed" or all(sum(rooms) < len(atoms) for rooms in fewer)
    if order == "packed":  # ... or one used up before the next
        assert sum(0 < taken[group] < room[group] for group in used) <= 1
    else:  # evenly, as far as there is room
        giving = [taken[g] for g in (used if order == "conserved" else range(num_groups)) if taken[g] < room[g]]
        assert not giving or max(taken) - min(giving) <= 1
    for group in groups:  # the least held first
        here = [counters[atom] for atom in group if atom in atoms]
        left = [counters[atom] for atom in group if atom in free and atom not in atoms]
        assert not here or not left or max(here) <= min(left)


# -- the three orders, on the device of the paper ---------------------------------------------------------


def per_group(atoms: int) -> list[int]:
    return [(atoms >> 15 * group & 0x7FFF).bit_count() for group in range(4)]


@pytest.mark.parametrize(
    ("order", "wanted", "shares"),
    [
        ("conserved", 15, [15, 0, 0, 0]),
        ("conserved", 16, [8, 8, 0, 0]),
        ("conserved", 31, [11, 10, 10, 0]),
        ("packed", 16, [15, 1, 0, 0]),
        ("packed", 31, [15, 15, 1, 0]),
        ("distributed", 16, [4, 4, 4, 4]),
        ("distributed", 6, [2, 2, 1, 1]),
    ],
)
def test_orders_on_an_idle_device(order: str, wanted: int, shares: list[int]) -> None:
    assert per_group(mask(MI50, [], wanted, Placement(order))) == shares


def test_a_second_kernel_goes_to_the_engines_with_least_to_do() -> None:
    first = mask(MI50, [], 16, Placement())
    assert per_group(mask(MI50, [first], 16, Placement())) == [0, 0, 8, 8]
    assert per_group(mask(MI50, [first], 16, Placement("distributed"))) == [4, 4, 4, 4]


def test_isolated_kernels_get_what_is_left_and_overlapping_ones_what_they_want() -> None:
    most = mask(MI50, [], 50, Placement())
    assert mask(MI50, [most], 30, Placement(max_overlap=0)) == MI50.all_atoms & ~most
    assert mask(MI50, [most], 30, Placement(max_overlap=1)).bit_count() == 30
    assert mask(MI50, [most, most], 30, Placement(max_overlap=1)) == MI50.all_atoms & ~most


@pytest.mark.parametrize("order", ORDERS)
def test_where_no_atom_qualifies_none_is_granted(order: str) -> None:
    full = [MI50.all_atoms, MI50.all_atoms]
    assert mask(MI50, full, 1, Placement(order, 1)) == 0
    assert mask(MI50, full, 1, Placement(order, 2)).bit_count() == 1
    assert compiled([2] * 60, 4, 1, order, 1) == []


def test_atoms_that_do_not_divide_evenly_are_in_groups_that_differ_by_one() -> None:
    starts = [first_atom(group, 132, 7) for group in range(8)]
    sizes = [end - start for start, end in pairwise(starts)]
    assert starts[0] == 0 and starts[-1] == 132
    assert sorted(set(sizes)) == [18, 19]


# -- the compiled form ------------------------------------------------------------------------------------


@njit  # type: ignore[untyped-decorator]
def fill_up(counters: np.ndarray, num_groups: int, wanted: int, chosen: np.ndarray) -> int:
    """An event loop in miniature: start kernels until none fits."""
    num_kernels = 0
    while True:
        granted = place(counters, num_groups, wanted, CONSERVED, 0, chosen)
        if granted == 0:
            return num_kernels
        for atom in chosen[:granted]:
            counters[atom] += 1
        num_kernels += 1


def test_a_compiled_loop_may_call_it() -> None:
    counters = np.zeros(304, dtype=np.int32)
    assert fill_up(counters, 32, 10, np.empty(places(304, 32), dtype=np.int32)) == 31
    assert set(counters.tolist()) == {1}


def test_an_array_without_the_working_space_is_refused() -> None:
    with pytest.raises(AssertionError, match="too short"):
        place(np.zeros(8, dtype=np.int32), 2, 1, CONSERVED, 0, np.empty(8, dtype=np.int32))


def test_orders_have_codes_and_unknown_ones_are_refused() -> None:
    assert [order_code(order) for order in ORDERS] == [CONSERVED, PACKED, DISTRIBUTED]
    for refuse in (order_code, lambda order: mask(MI50, [], 1, Placement(order))):
        with pytest.raises(
            OptionError, match=r"'scattered' does not exist\n.*known: conserved(.|\n)*name one of these"
        ):
            refuse("scattered")
