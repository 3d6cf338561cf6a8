"""Contents of the layers of several programs: equal numbers, equal weights, whoever comes and goes."""

from __future__ import annotations

import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.capture.merge_contents import Contents


def content(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def test_equal_contents_have_one_number_wherever_they_lie() -> None:
    one, other, contents = Layer("one"), Layer("other"), Contents()
    for slot, (seed, its) in enumerate([(0, 1), (1, 0), (2, 3)]):
        one.put(slot, content(seed))
        other.put(slot, content(its))
    contents.warm([one, other])
    numbers = [contents.number(layer, slot) for layer in (one, other) for slot in range(3)]
    assert numbers[0] == numbers[4] and numbers[1] == numbers[3] and len(set(numbers)) == 4


def test_contents_that_have_left_leave_nothing_behind() -> None:
    layer, peer, contents = Layer("layer"), Layer("peer"), Contents()
    layer.put(0, content(0))
    peer.put(0, content(0))
    stays = contents.number(layer, 0)
    for seed in range(1, 40):
        layer.put(1, content(seed))
        assert contents.number(layer, 1) not in (stays, -1)
        layer.drop(1)
    assert contents.number(peer, 0) == contents.number(layer, 0) == stays
    assert len(contents._homes) == 3 and len(contents._by_fingerprint) <= 2
    layer.put(1, content(0))
    assert contents.number(layer, 1) == stays
