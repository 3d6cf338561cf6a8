"""Marks the expensive members of a parametrisation as slow; `make test-all` runs them, too."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

# Members of the zoo that torch.export takes seconds for; every kind of layer that they have is in a smaller one.
LONG_EXPORTS = ("mobilenet_v2", "resnet50", "vgg19", "lstm")


def mostly(values: Iterable[Any], *, slow: Collection[Any]) -> list[Any]:
    """The values, those in `slow` marked."""
    return [pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values]
