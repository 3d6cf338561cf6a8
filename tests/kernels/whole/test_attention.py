"""Attention, masks and patches inside of whole programs answer what the modules answer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacetime.backends.executables import CohortExecutable
from spacetime.kernels.vector.host import Host, has_threads, host
from tests.kernels.hosts import hosts, on_every_host
from tests.kernels.whole.programs import executable_of, whole_of
from tests.kernels.whole.test_program import agree

pytestmark = pytest.mark.skipif(host() is None, reason="the processor has no fused multiply-add")


class Attends(nn.Module):
    """Heads of one size for queries and keys, of another for values; a mask if there is one."""

    def __init__(self, size: int, value_size: int, heads: int, **options: Any) -> None:
        super().__init__()
        self.heads, self.options = heads, options
        self.queries, self.keys = nn.Linear(9, heads * size), nn.Linear(7, heads * size)
        self.values = nn.Linear(7, heads * value_size)
        self.out = nn.Linear(heads * value_size, 5)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.split(self.queries(x)), self.split(self.keys(others)), self.split(self.values(others))
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=self.seen(mask), **self.options)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def seen(self, mask: Tensor | None) -> Tensor | None:
        """[rows, keys], for all heads and queries."""
        return None if mask is None else mask[:, None, None, :]


class Flagged(Attends):
    def seen(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.bool()[:, None, None, :]


class Selfish(nn.Module):
    """Of one head, without any dimension for it; the mask is one of each query and key."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=mask)


def tenants(kind: type[Attends], *sizes: int, **options: Any) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for seed in range(2):
        torch.manual_seed(seed)
        modules.append(kind(*sizes, **options).eval())
    return modules


@cache
def cohort(
    size: int, value_size: int, heads: int, queries: int, keys: int, **options: Any
) -> tuple[list[nn.Module], CohortExecutable]:
    modules = tenants(Attends, size, value_size, heads, **options)
    return modules, executable_of(modules, (torch.randn(2, queries, 9), torch.randn(2, keys, 7)))


@on_every_host
@pytest.mark.parametrize(
    ("heads", "size", "value_size", "queries", "keys", "options"),
    [
        (1, 1, 1, 1, 1, {}),
        (3, 17, 33, 20, 5, {"is_causal": True}),
        (1, 5, 70, 4, 16, {"is_causal": True}),
        (2, 64, 16, 7, 19, {"scale": 0.7}),
        (2, 40, 48, 5, 21, {}),
    ],
)
def test_any_size(
    on: Host, heads: int, size: int, value_size: int, queries: int, keys: int, options: dict[str, Any]
) -> None:
    modules, executable = cohort(size, value_size, heads, queries, keys, **options)
    requests = [(torch.randn(rows, queries, 9), torch.randn(rows, keys, 7)) for rows in (1, 2, 1)]
    agree(whole_of(executable, on), modules, [1, 0, 1], requests)


@on_every_host
@pytest.mark.parametrize("kind", [Flagged, Attends])
def test_masks(on: Host, kind: type[Attends]) -> None:
    def mask(rows: int) -> Tensor:
        seen = torch.rand(rows, 19) < 0.6
        seen[:, 4] = True
        return seen.long() if kind is Flagged else torch.zeros(rows, 19).masked_fill(~seen, -torch.inf)

    modules = tenants(kind, 8, 8, 2)
    requests = [(torch.randn(rows, 3, 9), torch.randn(rows, 19, 7), mask(rows)) for rows in (2, 1, 3)]
    agree(whole_of(executable_of(modules, requests[0]), on), modules, [0, 1, 0], requests)


@on_every_host
def test_a_mask_of_queries_and_keys(on: Host) -> None:
    requests = [(torch.randn(rows, 17, 6), torch.randn(rows, 17, 17)) for rows in (2, 1)]
    modules: list[nn.Module] = [Selfish(), Selfish()]
    agree(whole_of(executable_of(modules, requests[0]), on), modules, [0, 1], requests)


@pytest.mark.parametrize("kind", [Flagged, Attends])
def test_who_sees_nothing_gets_zeros(kind: type[Attends]) -> None:
    modules = tenants(kind, 8, 8, 2)
    masks = torch.ones(2, 4).long() if kind is Flagged else torch.zeros(2, 4)
    example = (torch.randn(2, 3, 9), torch.randn(2, 4, 7), masks)
    whole = whole_of(executable_of(modules, example), hosts()[0])
    nothing = masks.clone()
    nothing[1] = 0 if kind is Flagged else -torch.inf
    with torch.no_grad():
        [[found]] = whole.run([0], [(*example[:2], nothing)])
        torch.testing.assert_close(found, modules[0](*example[:2], nothing))
        torch.testing.assert_close(found[1], modules[0].out.bias.expand(3, 5))


def test_not_a_number_stays_with_its_row() -> None:
    modules = tenants(Attends, 8, 8, 2)
    bad = torch.randn(2, 3, 9), torch.randn(2, 4, 7)
    bad[1][1, 2, 0] = torch.nan
    good = torch.randn(1, 3, 9), torch.randn(1, 4, 7)
    whole = whole_of(executable_of(modules, bad), hosts()[0])
    (first,), (second,) = whole.run([0, 1], [bad, good])
    assert first[1].isnan().all() and first[0].isfinite().all() and second.isfinite().all()


@pytest.mark.skipif(not has_threads(), reason="PyTorch does not use GNU's OpenMP here")
def test_heads_on_more_threads_give_the_same_bits() -> None:
    modules = tenants(Attends, 512, 512, 3)  # long enough for stages to be shared out
    request = (torch.randn(1, 40, 9), torch.randn(1, 40, 7))
    whole = whole_of(executable_of(modules, (request[0].repeat(2, 1, 1), request[1].repeat(2, 1, 1))), hosts()[0])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(whole.run([0], [request])[0][0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


class Patches(nn.Module):
    """The windows of a convolution side by side, as transformers for images begin."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 10, (2, 3), stride=(2, 3), bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.patches(image).flatten(2).transpose(1, 2).softmax(-1)


@on_every_host
@pytest.mark.parametrize(("channels", "bias"), [(1, True), (3, False)])
def test_patches(on: Host, channels: int, bias: bool) -> None:
    modules: list[nn.Module] = [Patches(channels, bias) for _ in range(2)]
    whole = whole_of(executable_of(modules, (torch.randn(2, channels, 6, 9),)), on)
    images = torch.randn(1, channels, 6, 9), torch.randn(2, channels, 6, 9).to(memory_format=torch.channels_last)
    agree(whole, modules, [1, 0], [(image,) for image in images])


class Flags(nn.Module):
    """Integers as a mask that is multiplied with."""

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        return x * counts.bool().float()[:, :, None]


def test_flags() -> None:
    modules: list[nn.Module] = [Flags(), Flags()]
    whole = whole_of(
        executable_of(modules, (torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, -1], [0, 0, 1, 0]]))), hosts()[0]
    )
    requests = [
        (torch.randn(1, 4, 3), torch.tensor([[1 << 40, 0, -5, 0]])),
        (torch.randn(2, 4, 3), torch.arange(8).view(2, 4)),
    ]
    agree(whole, modules, [0, 1], requests)


class Fewer(nn.Module):
    """Two heads of keys and values for four of queries."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True)


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (Fewer(), (torch.randn(2, 4, 3, 8),), "not as many"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, padding=1), nn.Flatten()), (torch.randn(2, 3, 4, 4),), "overlap"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten()), (torch.randn(2, 3, 5, 4),), "overlap"),
    ],
)
def test_what_is_not_whole_says_why(module: nn.Module, example: tuple[Tensor, ...], reason: str) -> None:
    whole = executable_of([module], example).whole
    assert isinstance(whole, str) and reason in whole
