"""Tables of common launches on the device: eagerly at once, in a capture behind it."""

from __future__ import annotations

import pytest
import torch

from spacetime.kernels import together
from spacetime.kernels.together import LateSpans, Spans

HOST = torch.device("cpu")


def table(value: int) -> torch.Tensor:
    return torch.full((2, 3), value)


def test_a_table_is_a_copy_and_equal_ones_have_one_source() -> None:
    spans, given = Spans((None,)), table(7)
    first, second = spans.upload(given, HOST), spans.upload(table(7), HOST)
    assert first.equal(given) and second.equal(given)
    assert len({tensor.data_ptr() for tensor in (given, first, second)}) == 3
    assert len(spans._sources) == 1 and not spans.is_late


def test_what_too_many_have_been_kept_of_is_copied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_SOURCES", 2)
    spans = Spans((None,))
    for value in range(4):
        assert spans.upload(table(value), HOST).equal(table(value))
    assert len(spans._sources) == 2


def test_late_tables_are_held_and_written_once() -> None:
    late, shared = LateSpans((None,)), table(9)
    made = [late.upload(table(value), HOST).fill_(-1) for value in (1, 2)]
    late.hold(shared)
    assert late.is_late and [id(tensor) for tensor in late.held] == [id(tensor) for tensor in (*made, shared)]
    late.write()
    assert made[0].equal(table(1)) and made[1].equal(table(2))
    made[0].fill_(5)
    late.write()
    assert made[0].equal(table(5)), "there is nothing left to write"
