"""Row maps against their definition, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.kernels import RowMap
from tests.kernels.layers import Sharing, layer, row_maps, sharings, slot_of_row


@given(row_maps(), sharings)
def test_runs_are_the_rows_grouped_by_entry(rows: RowMap, sharing: Sharing) -> None:
    weights = layer(sharing, 2)
    layout = rows.layout(weights)
    expected = [weights.entries[slot] for slot in slot_of_row(rows)]
    written = [run.entry for run in layout.runs for _ in range(run.count)]
    assert written == expected
    assert [run.start for run in layout.runs] == [
        sum(r.count for r in layout.runs[:i]) for i in range(len(layout.runs))
    ]
    assert all(one.entry != other.entry for one, other in zip(layout.runs, layout.runs[1:], strict=False))
    consecutive = [layout.first.entry + i for i in range(len(layout.runs))]
    equal_runs = len({run.count for run in layout.runs}) == 1
    assert layout.block == (equal_runs and [run.entry for run in layout.runs] == consecutive)


@given(row_maps(), sharings, st.integers(1, 3))
def test_entries_per_row_follow_the_slots(rows: RowMap, sharing: Sharing, multiple: int) -> None:
    weights = layer(sharing, 2)
    expected = [weights.entries[slot] for slot in slot_of_row(rows) for _ in range(multiple)]
    assert rows.entry_per_row(weights, multiple).tolist() == expected
    assert rows.total == len(slot_of_row(rows))


@pytest.mark.parametrize(
    ("slots", "counts", "sharing", "runs", "block"),
    [
        ((0, 1, 2), (2, 2, 2), (0, 1, 2, 3), 3, True),
        ((1, 2), (1, 1), (0, 1, 2, 3), 2, True),
        ((0, 1, 2), (2, 1, 2), (0, 1, 2, 3), 3, False),
        ((0, 2), (1, 1), (0, 1, 2, 3), 2, False),
        ((1, 0), (1, 1), (0, 1, 2, 3), 2, False),
        ((0, 1, 2), (1, 2, 3), (0, 0, 0, 0), 1, True),
        ((0, 1, 2), (1, 1, 2), (0, 0, 1, 0), 2, True),
    ],
)
def test_known_layouts(
    slots: tuple[int, ...], counts: tuple[int, ...], sharing: Sharing, runs: int, block: bool
) -> None:
    layout = RowMap(slots, counts).layout(layer(sharing, 2))
    assert (len(layout.runs), layout.block) == (runs, block)


def test_layers_of_one_sharing_share_a_layout() -> None:
    rows = RowMap((0, 1), (1, 2))
    one, other, apart = layer((0, 1, 2, 3), 2), layer((0, 1, 2, 3), 5, seed=1), layer((0, 0, 2, 3), 5, seed=1)
    assert rows.layout(one) is rows.layout(other)
    assert rows.layout(one) is not rows.layout(apart)


def test_ways_of_sharing_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.kernels.rowmap._MOST_WAYS", 3)
    rows, weights = RowMap((0, 1), (1, 2)), layer((0, 1, 2, 3), 2)
    for way in range(20):  # tenants come and go
        weights.sharing = 100 + way
        assert len(rows.layout(weights).runs) == 2
        assert rows.entry_per_row(weights).tolist() == [weights.entries[slot] for slot in (0, 1, 1)]
        assert rows.run_words(weights).shape == (2, 3)
    assert max(len(rows._layouts), len(rows._indices), len(rows._run_words)) <= 3
