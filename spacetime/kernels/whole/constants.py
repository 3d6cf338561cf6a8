"""What a program computes from constants alone is computed when it is read; what they leave as it is costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CONJUNCTIONS = ("__and__", "bitwise_and", "logical_and")


def is_known(value: Any) -> bool:
    """A tensor with content, not a value of a row."""
    return isinstance(value, Tensor) and value.device.type != "meta"


def repeats(target: Any) -> bool:
    """Does an operation give the same every time? Not what is random, and not memory as it was found."""
    name = str(getattr(target, "__name__", target))
    return torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()) and "empty" not in name


def takes_all_in_order(x: Tensor, indices: Sequence[Any]) -> bool:
    """x[indices] is x in another shape: as models gather a mask for every row, query and key."""
    if len(indices) != x.ndim or not all(is_known(index) and index.dtype == torch.int64 for index in indices):
        return False
    place = torch.zeros((), dtype=torch.int64)
    for size, index in zip(x.shape, indices, strict=True):
        place = place * size + index
    return place.numel() == x.numel() and torch.equal(place.flatten(), torch.arange(x.numel()))


def other_than_true(values: Sequence[Any]) -> Tensor | None:
    """Of two flags the one that decides, where the other is always true."""
    for flag, other in (values, values[::-1]):
        if is_known(flag) and flag.dtype == torch.bool and bool(flag.all()):
            return other if isinstance(other, Tensor) and other.dtype == torch.bool else None
    return None
