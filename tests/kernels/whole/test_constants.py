"""Constants inside of whole programs: computed with when the program is read, or kept beside the weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacetime.kernels.vector.host import Host, host
from spacetime.kernels.whole.constants import other_than_true, repeats, takes_all_in_order
from tests.kernels.hosts import hosts, on_every_host
from tests.kernels.whole.programs import executable_of, whole_of
from tests.kernels.whole.test_program import agree

pytestmark = pytest.mark.skipif(host() is None, reason="the processor has no fused multiply-add")


class Gathered(nn.Module):
    """A mask as transformers build it: gathered for every row, query and key, and combined with one that is true."""

    def __init__(self) -> None:
        super().__init__()
        self.states = nn.Embedding(20, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows, keys = torch.arange(ids.shape[0])[:, None, None, None], torch.arange(6)[None, None, None, :]
        seen = torch.ones(1, 1, 6, 1, dtype=torch.bool) & mask.bool()[rows, keys]
        states = self.states(ids)[:, None]
        mixed = F.scaled_dot_product_attention(states, states, states, attn_mask=seen.expand(-1, -1, 6, 6))
        return mixed.flatten(1)


class Fixed(nn.Module):
    """What is computed from constants alone, added to, multiplied with and attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        ahead = torch.arange(5)[:, None] < torch.arange(5)[None, :]
        bias = torch.zeros(5, 5).masked_fill(ahead, -torch.inf)
        scale = torch.tensor([0.5, 1.0, 2.0, 4.0]).expand(5, 4)
        states = self.linear(x) * scale + torch.tensor(0.25)
        return F.scaled_dot_product_attention(states, states, states, attn_mask=bias.expand(x.shape[0], 5, 5))


@on_every_host
def test_masks_as_transformers_build_them(on: Host) -> None:
    modules: list[nn.Module] = [Gathered() for _ in range(2)]
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    whole = whole_of(executable_of(modules, (torch.randint(20, (2, 6)), mask)), on)
    assert whole.script.num_constants == 0, "all of them leave the mask as it is"
    requests = [(torch.randint(20, (rows, 6)), mask[:rows]) for rows in (2, 1)]
    agree(whole, modules, [1, 0], requests)


@on_every_host
def test_what_is_computed_from_constants(on: Host) -> None:
    modules: list[nn.Module] = [Fixed() for _ in range(2)]
    whole = whole_of(executable_of(modules, (torch.randn(2, 5, 4),)), on)
    assert whole.script.num_constants
    agree(whole, modules, [1, 0, 1], [(torch.randn(rows, 5, 4),) for rows in (1, 3, 2)])


def test_a_gather_that_takes_other_entries_is_none_of_all() -> None:
    x = torch.empty(1, 4, device="meta")
    rows = torch.zeros(1, 1, dtype=torch.int64)
    assert takes_all_in_order(x, [rows, torch.arange(4)[None]])
    assert not takes_all_in_order(x, [rows, torch.arange(4).flip(0)[None]])
    assert not takes_all_in_order(x, [rows, torch.tensor([[0, 1, 2, 2]])])
    assert not takes_all_in_order(x, [rows, torch.arange(3)[None]])
    assert not takes_all_in_order(x, [rows])
    assert not takes_all_in_order(x, [rows, None])
    assert not takes_all_in_order(x, [rows, torch.ones(4, dtype=torch.bool)])


def test_flags_beside_what_is_always_true() -> None:
    flags = torch.empty(1, 3, dtype=torch.bool, device="meta")
    assert other_than_true([flags, torch.ones(3, dtype=torch.bool)]) is flags
    assert other_than_true([torch.ones(1, 1, dtype=torch.bool), flags]) is flags
    assert other_than_true([flags, torch.tensor([True, False, True])]) is None
    assert other_than_true([torch.empty(3, device="meta"), torch.ones(3, dtype=torch.bool)]) is None


def test_what_differs_every_time_is_no_constant() -> None:
    assert repeats(torch.ops.aten.arange.default)
    assert not repeats(torch.ops.aten.rand.default)
    assert not repeats(torch.ops.aten.empty.memory_format)


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.tensor([1.0, 2.0], dtype=torch.float64)).float()


def test_constants_of_other_types_say_so() -> None:
    whole = executable_of([Doubles()], (torch.randn(2, 2),)).whole
    assert isinstance(whole, str) and "float64" in whole


def test_the_programs_constants_live_as_long_as_it_does() -> None:
    whole = whole_of(executable_of([Fixed()], (torch.randn(2, 5, 4),)), hosts()[0])
    request = (torch.ones(1, 5, 4),)
    [[first]] = whole.run([0], [request])
    garbage = [torch.full((5, 5), torch.nan) for _ in range(1000)]
    [[second]] = whole.run([0], [request])
    assert torch.equal(first, second) and len(garbage) == 1000
