"""Words: a mix as the few bytes that a device needs to know of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spacetime.kernels.rowmap import HEADER, AnyRows, MixError, RowMap, capacity, faults_in, fill, num_words, slots_in
from tests.kernels.layers import layer, row_maps, slot_of_row

CPU = torch.device("cpu")


@given(row_maps())
def test_words_hold_the_slot_of_every_row(rows: RowMap) -> None:
    words = rows.words(CPU)
    assert words[0] == rows.total and words.shape == (num_words(rows.total),)
    assert slots_in(words)[: rows.total].tolist() == slot_of_row(rows)
    assert (slots_in(words)[rows.total :] == -1).all() and not faults_in(words).any()
    assert rows.words(CPU).data_ptr() != words.data_ptr(), "every lane has its own"


@given(st.integers(1, 500), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=5))
def test_words_are_filled_again_and_forget_what_was_there(extra: int, mix: list[tuple[int, int]]) -> None:
    total = sum(count for _, count in mix)
    words = torch.full((num_words(total + extra),), 77, dtype=torch.int32)
    fill(words, [slot for slot, _ in mix], [count for _, count in mix])
    assert words[0] == total and not faults_in(words).any()
    assert slots_in(words).tolist()[:total] == [slot for slot, count in mix for _ in range(count)]
    assert (slots_in(words)[total:] == -1).all()


@given(st.integers(0, 1000))
def test_every_part_of_the_words_starts_at_16_bytes(num_rows: int) -> None:
    assert capacity(num_rows) >= num_rows and capacity(num_rows) % 4 == 0 and HEADER % 4 == 0
    assert slots_in(torch.zeros(num_words(num_rows), dtype=torch.int32)).numel() == capacity(num_rows)


def test_a_mix_that_is_too_large_is_refused() -> None:
    with pytest.raises(AssertionError, match="17 rows in words for 16"):
        fill(torch.zeros(num_words(16), dtype=torch.int32), [0], [17])


def test_any_rows_have_the_words_they_are_given_and_no_layout() -> None:
    words = torch.zeros(num_words(5), dtype=torch.int32)
    rows = AnyRows(5, words)
    assert rows.total == 5 and rows.words(CPU) is words and rows.any_mix and not RowMap((0,), (1,)).any_mix
    with pytest.raises(MixError, match="must know whose rows"):
        rows.layout(layer((0, 1, 2, 3), 4))
