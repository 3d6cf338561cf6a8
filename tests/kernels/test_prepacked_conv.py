"""The prepacked convolution answers what the plain one answers, and notices when an entry gets other content."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.capture.selfcheck import TOLERANCE, deviation
from spacetime.errors import OptionError
from spacetime.kernels import prepacked_conv
from spacetime.kernels.prepacked_conv import WORTH_PACKING_BYTES, PrepackedConv, available
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_conv import SlotConv
from spacetime.runtime.runtime import Runtime

pytestmark = pytest.mark.skipif(not available(), reason="this build of torch has no oneDNN")

CHANNELS = 96  # 96 x 96 x 3 x 3 float32 = 332 KB: worth packing


def layer(name: str, *contents: Tensor, channels_last: bool = False) -> Layer:
    made = Layer(name, channels_last=channels_last)
    for slot, content in enumerate(contents):
        made.put(slot, content)
    return made


def three_by_three(
    weight: Layer, bias: Layer | None, scale: Layer | None, shift: Layer | None, activation: Any
) -> SlotConv:
    geometry: dict[str, Any] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    return SlotConv(weight, bias, scale, shift, name="conv2d", activation=activation, **geometry)


def convolutions(activation: object, *, norm: bool, seed: int = 0) -> tuple[SlotConv, PrepackedConv]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> list[Tensor]:
        return [torch.randn(*shape, generator=generator) for _ in range(3)]

    weight = layer("weight", *draw(CHANNELS, CHANNELS, 3, 3), channels_last=True)
    vectors = [layer(name, *draw(CHANNELS)) for name in ("a", "b")]
    bias, scale, shift = (None, *vectors) if norm else (vectors[0], None, None)
    plain = three_by_three(weight, bias, scale, shift, activation)
    return plain, PrepackedConv(plain)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", [None, ("relu", (0.0, float("inf"))), ("hardtanh", (0.0, 6.0))])
@pytest.mark.parametrize("rows", [RowMap((1,), (2,)), RowMap((0, 1, 2), (1, 3, 2)), RowMap((2, 0), (1, 1))])
def test_answers_what_the_plain_convolution_answers(norm: bool, activation: object, rows: RowMap) -> None:
    plain, packed = convolutions(activation, norm=norm)
    x = 0.02 * torch.randn(rows.total, CHANNELS, 6, 6)  # most results lie between the bounds of the activation
    assert deviation(packed(rows, x), plain(rows, x)) <= TOLERANCE[torch.float32]
    assert packed.packed_bytes == len(rows.slots) * CHANNELS * CHANNELS * 9 * 4


def test_an_entry_with_other_content_is_packed_again() -> None:
    plain, packed = convolutions(None, norm=False)
    rows, x = RowMap((1,), (1,)), torch.randn(1, CHANNELS, 6, 6)
    before = packed(rows, x)
    plain.weight.drop(1)
    plain.weight.put(1, torch.randn(CHANNELS, CHANNELS, 3, 3))
    after = packed(rows, x)
    assert deviation(after, plain(rows, x)) <= TOLERANCE[torch.float32]
    assert not torch.allclose(before, after)


def test_small_weights_are_not_copied() -> None:
    small = layer("weight", torch.randn(8, 8, 3, 3), channels_last=True)
    plain = three_by_three(small, None, None, None, None)
    packed = PrepackedConv(plain)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(packed(RowMap((0,), (1,)), x), plain(RowMap((0,), (1,)), x))
    assert packed.packed_bytes == 0 < WORTH_PACKING_BYTES


def test_prepacking_without_onednn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked_conv, "available", lambda: False)
    with pytest.raises(OptionError, match="prepack=True needs oneDNN"):
        Runtime("cpu", prepack=True)
