"""The heaviest common subsequence of two sequences, vectorised. merging/ only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LARGEST_SUM = 2**30


def heaviest_matches(
    longer: NDArray[np.intp], shorter: NDArray[np.intp], gains_with: Callable[[int], Floats]
) -> list[tuple[int, int]]:
    """Pairs (i, j), both increasing, that maximise the sum of `gains_with(shorter[j])[longer[i]]`; none gains 0.

    One row of the table for every entry of `shorter`, computed at once: np.maximum.accumulate is the inner loop of the
    textbook.
    """
    rows = _as_integers({int(key): gains_with(int(key))[longer] for key in np.unique(shorter)}, len(shorter))
    table = np.zeros((len(shorter) + 1, len(longer) + 1), dtype=np.int32)
    for j, key in enumerate(shorter.tolist()):
        above, below = table[j], table[j + 1]
        gains = rows[key]
        if gains is None:
            below[:] = above
            continue
        row = below[1:]
        np.add(above[:-1], gains, out=row)
        np.maximum(row, above[1:], out=row)
        np.maximum.accumulate(row, out=row)
    return _trace(table)


def _as_integers(rows: dict[int, Floats], most_matches: int) -> dict[int, NDArray[np.int32] | None]:
    """Small integers are faster, and their sums are exact: the way back compares them. None: no match at all."""
    largest = max((float(row.max(initial=0.0)) for row in rows.values()), default=0.0)
    scale = LARGEST_SUM / most_matches / largest if largest else 0.0
    return {key: (row * scale).astype(np.int32) if row.any() else None for key, row in rows.items()}


def _trace(table: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Back from the last corner: left as far as the best sum is the same, then up."""
    found = []
    i = table.shape[1] - 1
    for j in range(table.shape[0] - 1, 0, -1):
        best = table[j, i]
        if best == 0:
            break
        i = int(np.searchsorted(table[j, : i + 1], best))
        if table[j - 1, i] < best:  # not from above and not from the left: entries i - 1 and j - 1 match
            i -= 1
            found.append((i, j - 1))
    return found[::-1]
