"""Chains of what people write, several tenants, any mix: they answer as the plain modules do, however they run."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture.selfcheck import magnitude
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.runtime.prepare import Preparer
from tests.capture.sketches import Part, count, draw, sketch
from tests.runtime.models import assert_equal, plain

TENANTS = 3
ROW = ((6, 8),)  # of every block's input and output
LINEAR: dict[str, Part] = {"linear": lambda: nn.Linear(8, 8)}
VECTOR: dict[str, Part] = {"w": (8,)}

Block = tuple[Callable[[Any, Tensor], Tensor], dict[str, Part]]


def writes_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[:, 0] = m.w
    y[:, 1:3] = x[:, :2]
    y[:, 5].zero_()
    return cast(Tensor, y.relu_())


def by_steps(m: Any, x: Tensor) -> Tensor:
    hidden, found = torch.zeros(count(x), 8), []
    for step in x.unbind(1):
        hidden = torch.tanh(m.linear(step) + hidden)
        found.append(hidden)
    return torch.stack(found, 1)


def image(m: Any, x: Tensor) -> Tensor:
    """Whose code takes a convolution's output in the usual order of memory only."""
    return cast(Tensor, m.head(m.conv(x[:, None]).view(x.shape[0], -1)).view(x.shape))


def windows(m: Any, x: Tensor) -> Tensor:
    """Rows merged with another dimension, and back."""
    parts = x.view(count(x), 2, 3, 8).reshape(-1, 3, 8)
    return cast(Tensor, (m.norm(parts) * m.w).view(x.shape))


BLOCKS: dict[str, Block] = {
    "linear": (lambda m, x: m.linear(x), LINEAR),
    "einsum": (lambda m, x: torch.einsum("ts,bsd->btd", m.w, x), {"w": (6, 6)}),
    "weight on the left": (lambda m, x: (m.w @ x).softmax(-1) * x, {"w": (6, 6)}),
    "attention": (lambda m, x: F.scaled_dot_product_attention(m.linear(x), x, x, is_causal=True), LINEAR),
    "query": (lambda m, x: F.scaled_dot_product_attention(m.w.expand(count(x), -1, -1), x, x), {"w": (1, 6, 8)}),
    "mask": (lambda m, x: x.masked_fill(m.w > 0, 0.5), VECTOR),
    "padding": (
        lambda m, x: m.heads(x, x, x, key_padding_mask=x[..., 0] > 9)[0],
        {"heads": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "norm": (lambda m, x: m.norm(x), {"norm": lambda: nn.LayerNorm((6, 8))}),
    "groups": (lambda m, x: m.norm(x), {"norm": lambda: nn.GroupNorm(3, 6)}),
    "rms": (lambda m, x: m.norm(x), {"norm": lambda: nn.RMSNorm(8)}),
    "prelu": (lambda m, x: m.act(x), {"act": lambda: nn.PReLU(6)}),
    "gate": (lambda m, x: F.glu(torch.cat([x, m.linear(x)], -1), -1), LINEAR),
    "convolution": (lambda m, x: m.conv(x), {"conv": lambda: nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular")}),
    "transposed": (lambda m, x: m.conv(x)[..., :8], {"conv": lambda: nn.ConvTranspose1d(6, 6, 3)}),
    "image": (image, {"conv": lambda: nn.Conv2d(1, 2, 3), "head": lambda: nn.Linear(48, 48)}),
    "windows": (windows, {"norm": lambda: nn.LayerNorm(8), "w": (3, 8)}),
    "steps": (by_steps, LINEAR),
    "gru": (lambda m, x: m.gru(x)[0], {"gru": lambda: nn.GRU(8, 4, batch_first=True, bidirectional=True)}),
    "in place": (writes_in_place, LINEAR | VECTOR),
    "picked": (lambda m, x: x + m.table(x.topk(3).indices).sum(2), {"table": lambda: nn.Embedding(8, 8)}),
    "sorted": (lambda m, x: x.gather(1, x.argsort(1)) + x.cumsum(1), {}),
    "scattered": (lambda m, x: torch.zeros_like(x).scatter(-1, x.argsort(-1), x * m.w), VECTOR),
    "scattered alike": (lambda m, x: x.scatter(2, torch.tensor([[[0]]]), 5.0), {}),
    "own entries": (lambda m, x: x[torch.arange(count(x))[:, None], m.w.argsort()], {"w": (6,)}),
    "scalar": (lambda m, x: x * m.w.exp() + torch.arange(6.0)[:, None], {"w": ()}),
    "number": (lambda m, x: x * m.w.item(), {"w": ()}),
    "over rows": (lambda m, x: x - x.mean(0), {}),
    "pairs": (lambda m, x: m.pairs(x, x.tanh()), {"pairs": lambda: nn.Bilinear(8, 8, 8)}),
    "sampled": (
        lambda m, x: F.grid_sample(x[:, None], m.linear(x).view(-1, 6, 4, 2), align_corners=False).repeat(1, 1, 1, 2)[
            :, 0
        ],
        LINEAR,
    ),
    "the tenant's image": (
        lambda m, x: F.grid_sample(
            m.image.expand(count(x), 2, 5, 5), x.view(-1, 6, 4, 2), align_corners=False
        ).mT.reshape(x.shape),
        {"image": (1, 2, 5, 5)},
    ),
    "differences": (lambda m, x: x.diff(dim=1, prepend=x[:, :1] - m.w).multiply(m.w), VECTOR),
    "overlapping": (lambda m, x: F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1) @ m.w, {"w": (3,)}),
    "shifted": (lambda m, x: F.pad(x, (0, 0, 1, 0, 0, 0))[:, :-1].subtract(x), {}),
    "tied": (lambda m, x: torch.relu(x @ m.w) @ m.w.t(), {"w": (8, 4)}),
}
OUTPUTS: list[Callable[[Tensor, Tensor], Any]] = [
    lambda x, y: y,
    lambda x, y: {"y": (y, y[:, :2]), "none": None, "x": x},
    lambda x, y: [y.transpose(0, 1), y.argmax(-1), 3, y.flatten(1)],
]


def chain(names: list[str], output: int, seed: int) -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        y = x
        for place in range(len(names)):
            y = m.get_submodule(str(place))(y)
        return OUTPUTS[output](x, y)

    module = sketch(run, {})
    for place, name in enumerate(names):
        module.add_module(str(place), sketch(*BLOCKS[name], seed=seed + place))
    return module.eval()


def lane(tenants: list[int], rows: list[int], *, fused: bool) -> Lane:
    views = [RequestView(index, f"t{tenant}", rows[index], 0) for index, tenant in enumerate(tenants)]
    return Lane("cohort", tuple(views), (Segment(Partition(1, 1, 1)),), fused=fused)


@settings(max_examples=6)
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=2), st.integers(0, 2), st.integers(0, 99))
def test_any_chain_in_any_mix_answers_as_the_plain_modules_do(names: list[str], output: int, seed: int) -> None:
    chance = random.Random(seed)
    plains = [chain(names, output, 10 * tenant) for tenant in range(TENANTS)]
    usual = [list(map(magnitude, pytree.tree_leaves(plain(module, *draw(ROW, 8, 0))))) for module in plains]
    preparer, example = Preparer(), draw(ROW, chance.randint(1, 3), 1)
    prepared = [
        preparer.prepare(f"t{tenant}", chain(names, output, 10 * tenant), example, exact=False)
        for tenant in range(TENANTS)
    ]
    executable = prepared[0].executable
    assert len({each.cohort for each in prepared}) == 1 and all(
        bool(each.reason) != bool(each.cohort) for each in prepared
    )
    for fused in (True, False):
        tenants = [chance.randrange(TENANTS) for _ in range(chance.randint(1, 4))]
        rows = [chance.randint(1, 4) for _ in tenants]
        inputs = [draw(ROW, number, seed + number) for number in rows]
        outcomes = executable.run(lane(tenants, rows, fused=fused), [Call.of(args) for args in inputs])
        for tenant, args, outcome in zip(tenants, inputs, outcomes, strict=True):
            assert outcome.error is None, outcome.error
            assert_equal(outcome.value, plain(plains[tenant], *args), usual[tenant])


def test_most_blocks_share_launches() -> None:
    """What is opaque answers right whatever it is, so the chains above would not notice if all were."""
    opaque = {"scattered alike", "own entries", "number", "over rows"}
    for name in (
        "in place",
        "picked",
        "padding",
        "windows",
        "pairs",
        "sampled",
        "differences",
        "shifted",
        *sorted(opaque),
    ):
        prepared = Preparer().prepare("t", chain([name], 0, 0), draw(ROW, 2, 0), exact=False)
        assert isinstance(prepared.executable, CohortExecutable) != (name in opaque), f"{name}: {prepared.reason}"
