"""A stack of linear layers: the simplest tenant. Part of the zoo; imports torch only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def relu_stack(widths: Sequence[int]) -> list[nn.Module]:
    """Linear and ReLU for every step from one width to the next."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return layers


class Mlp(nn.Module):
    """`depth` hidden layers of one width, then a classifier."""

    def __init__(self, width: int = 256, depth: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*relu_stack([width] * (depth + 1)))
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(features))
        return logits
