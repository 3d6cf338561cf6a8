"""Fused programs: the layouts that real models use, in every subset and order of tenants, with ragged rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.sketches import TOKENS, VECTOR, Case, Part, count, draw, sketch
from tests.capture.tenants import Tenants, capture, largest_deviation, leaves_of


def linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


def pooled_last(m: Any, x: Tensor, y: Tensor) -> Any:
    """The hidden state of the last token of every row, as language model classifiers take it."""
    hidden = m.linear(x)
    last = (y > 0).sum(1).clamp(max=5)
    return hidden[torch.arange(count(x)), last]


def frames(m: Any, x: Tensor) -> Tensor:
    """A video: the frames of a row go through a convolution as if they were rows."""
    clips = x.view(-1, 3, 4, 4, 2)
    return torch.relu(m.norm(m.conv(clips.flatten(0, 1)))).view(-1, 3, 5, 4, 2).sum(1)


def sequence_first(m: Any, x: Tensor) -> Any:
    steps = x.transpose(0, 1)
    return m.norm(m.linear(steps) * m.scale).transpose(0, 1)


SCALE: dict[str, Part] = {"w": (8,)}
MATRIX: dict[str, Part] = {"w": (8, 5)}
CONV: dict[str, Part] = {"conv": lambda: nn.Conv1d(6, 4, 3)}

APART = [
    Case("steps first", sequence_first, parts={"linear": linear(8, 8), "scale": (8,), "norm": lambda: nn.LayerNorm(8)}),
    Case("steps merged with rows", lambda m, x: m.linear(x.view(-1, 8)).view(-1, 6, 5), parts={"linear": linear(8, 5)}),
    Case(
        "features last, rows last but one",
        lambda m, x: (x.permute(1, 0, 2) + m.w).permute(1, 0, 2),
        parts={"w": (6, 1, 8)},
    ),
    Case("rows last", lambda m, x: (x.permute(1, 2, 0) * m.w).permute(2, 0, 1), parts={"w": (6, 8, 1)}),
    Case(
        "unbind and stack",
        lambda m, x: torch.stack([m.linear(s) for s in x.unbind(1)], 1),
        parts={"linear": linear(8, 5)},
    ),
    Case("chunks", lambda m, x: torch.cat([c * m.w for c in x.chunk(3, 1)], 2), parts=SCALE),
    Case("gated halves", lambda m, x: F.glu(x @ m.w), parts={"w": (8, 6)}),
    Case(
        "mask by row and position",
        lambda m, x, y: x * m.w * (y > 0)[torch.arange(count(x))[:, None], torch.arange(6)][..., None],
        ((6, 8), (6,)),
        SCALE,
    ),
    Case("last token", pooled_last, ((6, 8), (6,)), {"linear": linear(8, 5)}),
    Case("class token", lambda m, x: torch.cat([m.w.expand(count(x), -1, -1), x], 1), parts={"w": (1, 1, 8)}),
    Case("class token by repeat", lambda m, x: torch.cat([m.w.repeat(count(x), 1, 1), x], 1), parts={"w": (1, 1, 8)}),
    Case("repeated features", lambda m, x: (x * m.w).repeat(1, 2, 1), parts=SCALE),
    Case("repeated steps", lambda m, x: (x * m.w).repeat_interleave(2, 1), parts=SCALE),
    Case("learned initial state", lambda m, x: m.w.expand(count(x), 8) + x[:, 0], parts={"w": (1, 8)}),
    Case("state of zeros", lambda m, x: torch.cat([torch.zeros(count(x), 1, 8), x * m.w], 1), parts=SCALE),
    Case("state like the weights", lambda m, x: m.w.new_zeros(count(x), 8) + x[:, 0], parts=SCALE),
    Case("where", lambda m, x: torch.where(x > 0, m.w, x), parts=SCALE),
    Case("masked steps", lambda m, x: x.masked_fill(x[..., :1] > 0, -1.0) * m.w, parts=SCALE),
    Case("masked by a scalar weight", lambda m, x: x.masked_fill(x > 0, m.w), parts={"w": ()}),
    Case("scalar weight", lambda m, x: x * m.w, parts={"w": ()}),
    Case("scalar weight of another type", lambda m, x: x * m.w.double(), parts={"w": ()}),
    Case("clamped by weights", lambda m, x: torch.clamp(x, max=m.w), parts=SCALE),
    Case("weights first", lambda m, x: torch.addcmul(m.w, x, m.w, value=0.5), parts={"w": (6, 1)}),
    Case("einsum with weights", lambda m, x: torch.einsum("btd,de->bte", x, m.w), parts=MATRIX),
    Case("einsum with weights by step", lambda m, x: torch.einsum("btd,tde->bte", x, m.w), parts={"w": (6, 8, 3)}),
    Case("einsum within rows", lambda m, x: torch.einsum("btd,bsd->bts", x, x * m.w), parts=SCALE),
    Case("matrix behind", lambda m, x: x @ m.w, parts=MATRIX),
    Case("matrix in front", lambda m, x: m.w @ x, parts={"w": (3, 6)}),
    Case("vector behind", lambda m, x: x @ m.w, parts=SCALE),
    Case("addmm", lambda m, x: torch.addmm(m.b, x, m.w), VECTOR, {"w": (8, 5), "b": (5,)}),
    Case("addmm with a factor", lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5), VECTOR, {"w": (8, 5), "b": (5,)}),
    Case("tied and transposed", lambda m, x: F.linear(F.linear(x, m.w), m.w.t()), parts={"w": (5, 8)}),
    Case("constant matrix, own bias", lambda m, x: F.linear(x, torch.eye(8), m.w), parts=SCALE),
    Case("computed weights", lambda m, x: F.linear(x, m.w.softmax(-1)), parts={"w": (5, 8)}),
    Case("cumulated features", lambda m, x: (x * m.w).cumsum(-1), parts=SCALE),
    Case("gathered features", lambda m, x, y: (x * m.w).gather(1, (y > 0).long()), ((8,), (4,)), SCALE),
    Case("best features", lambda m, x: (x * m.w).topk(2, -1).values, parts=SCALE),
    Case("reversed steps", lambda m, x: (x * m.w)[:, torch.arange(5, -1, -1)], parts=SCALE),
    Case("normalised", lambda m, x: F.normalize(x * m.w, dim=-1), parts=SCALE),
    Case("cosines", lambda m, x: F.cosine_similarity(x, m.w, dim=-1), parts=SCALE),
    Case("group norm", lambda m, x: m.norm(x), parts={"norm": lambda: nn.GroupNorm(2, 6)}),
    Case("instance norm", lambda m, x: m.norm(x), parts={"norm": lambda: nn.InstanceNorm1d(6, affine=True)}),
    Case("batch norm alone", lambda m, x: m.norm(x), parts={"norm": lambda: nn.BatchNorm1d(6)}),
    Case("norm over two dimensions", lambda m, x: m.norm(x), parts={"norm": lambda: nn.LayerNorm((6, 8), bias=False)}),
    Case("rms norm", lambda m, x: m.norm(x), parts={"norm": lambda: nn.RMSNorm(8)}),
    Case("prelu", lambda m, x: m.prelu(x), parts={"prelu": lambda: nn.PReLU(6)}),
    Case(
        "weight norm",
        lambda m, x: m.linear(x),
        parts={"linear": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))},
    ),
    Case(
        "positions",
        lambda m, x: m.tokens(x) + m.places(torch.arange(4)),
        TOKENS,
        {"tokens": lambda: nn.Embedding(5, 8), "places": lambda: nn.Embedding(4, 8)},
    ),
    Case("table by index", lambda m, x: m.w[x], TOKENS, {"w": (5, 3)}),
    Case("one hot", lambda m, x: F.one_hot(x, 5).float() @ m.w, TOKENS, {"w": (5, 3)}),
    Case("tokens first", lambda m, x: m.tokens(x.t()).transpose(0, 1), TOKENS, {"tokens": lambda: nn.Embedding(5, 8)}),
    Case("pooling", lambda m, x: F.adaptive_avg_pool1d(F.max_pool1d(m.conv(x), 2), 2), parts=CONV),
    Case(
        "padded and resized",
        lambda m, x: F.interpolate(F.pad(x * m.w, (1, 1))[:, None], scale_factor=2, mode="bilinear"),
        parts=SCALE,
    ),
    Case("resized sequence", lambda m, x: F.interpolate(x * m.w, scale_factor=2, mode="linear"), parts=SCALE),
    Case(
        "reflected padding",
        lambda m, x: m.conv(x),
        parts={"conv": lambda: nn.Conv1d(6, 4, 3, padding=1, padding_mode="reflect")},
    ),
    Case("conv with two readers", lambda m, x: torch.stack([m.conv(x), m.conv(x).relu()], 1), parts=CONV),
    Case(
        "conv and hardtanh",
        lambda m, x: F.hardtanh(m.conv(x)),
        parts={"conv": lambda: nn.Conv1d(6, 4, 3, padding="same")},
    ),
    Case(
        "conv3d in groups",
        lambda m, x: m.conv(x.view(-1, 2, 3, 4, 2)),
        parts={"conv": lambda: nn.Conv3d(2, 4, 2, groups=2)},
    ),
    Case(
        "transposed conv",
        lambda m, x: m.conv(x[:, None]),
        parts={"conv": lambda: nn.ConvTranspose2d(1, 2, 3, stride=2)},
    ),
    Case(
        "frames of a video",
        frames,
        ((12, 4, 2),),
        {"conv": lambda: nn.Conv2d(4, 5, 3, padding=1), "norm": lambda: nn.BatchNorm2d(5)},
    ),
    Case(
        "lstm of two directions",
        lambda m, x: m.lstm(x[:, :2]),
        parts={"lstm": lambda: nn.LSTM(8, 4, bidirectional=True, batch_first=True)},
    ),
    Case(
        "multi-head attention",
        lambda m, x: m.attention(x, x, x),
        parts={"attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    Case(
        "multi-head attention, steps first",
        lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
        parts={"attention": lambda: nn.MultiheadAttention(8, 2)},
    ),
    Case(
        "transformer encoder", lambda m, x: m.encoder(x, src_key_padding_mask=x[..., 0] > 5), parts={"encoder": encoder}
    ),
    Case(
        "transformer decoder",
        lambda m, x: m.decoder(x, x.flip(1)),
        parts={"decoder": lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)},
    ),
    Case(
        "learned queries",
        lambda m, x: F.scaled_dot_product_attention(m.w.expand(count(x), -1, -1), x, x),
        parts={"w": (1, 3, 8)},
    ),
    Case("several outputs, some no tensors", lambda m, x: {"y": x * m.w, "none": None, "three": 3}, parts=SCALE),
]

ROWS = (1, 3, 2)
ORDERS = [order for size in (1, 2, 3) for order in itertools.permutations(range(3), size)]


@pytest.mark.parametrize("case", APART, ids=str)
def test_rows_that_stay_apart_are_fused_in_every_subset_and_order(case: Case) -> None:
    captured = capture(sketch(case.function, case.parts), draw(case.rows, 2, seed=0))
    tenants = Tenants(captured, [sketch(case.function, case.parts, seed) for seed in range(3)])
    inputs = [draw(case.rows, rows, seed) for seed, rows in enumerate(ROWS)]
    plain = [leaves_of(module, own) for module, own in zip(tenants.modules, inputs, strict=True)]
    for order in ORDERS:
        fused = tenants.fused(order, [inputs[slot] for slot in order])
        assert largest_deviation(fused, [plain[slot] for slot in order]) <= 1e-5, order
