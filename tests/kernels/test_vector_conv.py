"""Convolutions by vector kernels answer what PyTorch answers, for any geometry, mix of rows, and width of registers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.capture.selfcheck import TOLERANCE, deviation
from spacetime.capture.store import Store
from spacetime.kernels.prepacked_conv import PrepackedConv
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.vector.host import Host, has_threads, host
from spacetime.kernels.vector_conv import VectorConv
from tests.kernels.hosts import hosts, on_every_host

pytestmark = pytest.mark.skipif(host() is None, reason="the processor has no fused multiply-add")


ACTIVATIONS = (None, ("relu", (0.0, float("inf"))), ("hardtanh", (0.0, 6.0)))


class Refusing(SlotConv):
    """Stands where PyTorch would serve."""

    def __call__(self, rows: RowMap, x: Tensor) -> Tensor:
        raise AssertionError("PyTorch was asked")


def layer(name: str, contents: list[Tensor], *, channels_last: bool = False) -> Layer:
    made = Layer(name, channels_last=channels_last)
    for slot, content in enumerate(contents):
        made.put(slot, content)
    return made


def convolution(
    channels: int,
    depth: int,
    window: tuple[int, int],
    *,
    tenants: int = 3,
    norm: bool = True,
    bias: bool = False,
    kind: Callable[..., SlotConv] = SlotConv,
    seed: int = 0,
    **attributes: Any,
) -> SlotConv:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> list[Tensor]:
        return [torch.randn(*shape, generator=generator) for _ in range(tenants)]

    per_group = depth // attributes.get("groups", 1)
    weight = layer("weight", draw(channels, per_group, *window), channels_last=True)
    vectors = [layer(name, draw(channels)) for name in ("bias", "scale", "shift")]
    operands = (vectors[0] if bias else None, *(vectors[1:] if norm else (None, None)))
    given: dict[str, Any] = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "activation": None}
    return kind(weight, *operands, name="conv2d", **(given | attributes))


def vectors_only(plain: SlotConv, on: Host) -> VectorConv:
    """Fails where it would hand over to PyTorch."""
    return VectorConv(plain, Refusing.__new__(Refusing), on)


def agree(plain: SlotConv, rows: RowMap, x: Tensor, on: Host) -> None:
    expected = plain(rows, x)
    answer = vectors_only(plain, on)(rows, x)
    assert answer.shape == expected.shape
    assert deviation(answer, expected) <= TOLERANCE[torch.float32]


@on_every_host
@settings(max_examples=15)
@given(data=st.data())
def test_any_geometry(on: Host, data: st.DataObject) -> None:
    draw = data.draw
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), label="window")
    padding = [draw(st.integers(0, 2), label="padding") for _ in range(2)]
    stride = [draw(st.integers(1, 3), label="stride") for _ in range(2)]
    height, width = (draw(st.integers(size, 8), label="image") for size in window)
    depth, channels = draw(st.integers(1, 21), label="depth"), draw(st.integers(1, 21), label="channels")
    norm = draw(st.booleans(), label="norm")
    plain = convolution(
        channels,
        depth,
        window,
        norm=norm,
        bias=not norm and draw(st.booleans(), label="bias"),
        stride=stride,
        padding=padding,
        activation=draw(st.sampled_from(ACTIVATIONS), label="activation"),
    )
    slots = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(sorted), label="slots")
    counts = [draw(st.integers(1, 3), label="rows") for _ in slots]
    images = draw(st.integers(1, 2), label="images per row")
    rows = RowMap(tuple(slots), tuple(counts))
    agree(plain, rows, torch.randn(rows.total * images, depth, height, width), on)


@on_every_host
@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("depth", [3, 17])
def test_small_windows(on: Host, channels: int, depth: int) -> None:
    plain = convolution(channels, depth, (3, 3), stride=[2, 1], padding=[1, 1], activation=ACTIVATIONS[1])
    agree(plain, RowMap((0, 2), (2, 1)), torch.randn(3, depth, 19, 17), on)


@on_every_host
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [2, 16, 35])
@pytest.mark.parametrize("window", [(3, 3), (2, 3)])
def test_depthwise(on: Host, channels: int, stride: int, window: tuple[int, int]) -> None:
    attributes = {"groups": channels, "stride": [stride, stride], "padding": [1, 1], "activation": ACTIVATIONS[2]}
    agree(
        convolution(channels, channels, window, **attributes),
        RowMap((0, 2), (2, 1)),
        torch.randn(3, channels, 7, 9),
        on,
    )


@pytest.mark.skipif(not has_threads(), reason="PyTorch does not use GNU's OpenMP here")
@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("groups", [False, True])
def test_more_threads_give_the_same_bits(channels: int, groups: bool) -> None:
    on = hosts()[0]
    attributes = {"groups": channels if groups else 1, "padding": [1, 1]}
    vector = vectors_only(convolution(channels, channels, (3, 3), **attributes), on)
    rows, x = RowMap((0, 1, 2), (1, 1, 1)), torch.randn(3, channels, 6, 6)
    threads = torch.get_num_threads()
    answers = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            answers.append(vector(rows, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


FEWER_THREADS = """
import torch
from tests.kernels.hosts import hosts
from tests.kernels.test_vector_conv import agree, convolution
from spacetime.kernels import RowMap
torch.set_num_threads(4)
assert torch.get_num_threads() == 4
agree(convolution(40, 8, (3, 3), padding=[1, 1]), RowMap((0, 1), (1, 1)), torch.randn(2, 8, 4, 4), hosts()[0])
"""


@pytest.mark.skipif(not has_threads(), reason="PyTorch does not use GNU's OpenMP here")
def test_fewer_threads_than_were_asked_for_do_all_the_work() -> None:
    environment = os.environ | {"OMP_THREAD_LIMIT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


@on_every_host
def test_nan_and_infinity_come_out_where_pytorch_has_them(on: Host) -> None:
    plain = convolution(5, 4, (1, 1), activation=ACTIVATIONS[2])
    x = torch.randn(1, 4, 2, 2)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = float("nan"), float("inf")
    rows = RowMap((1,), (1,))
    assert torch.equal(vectors_only(plain, on)(rows, x).isnan(), plain(rows, x).isnan())


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    vector = vectors_only(convolution(8, 8, (3, 3), padding=[1, 1]), hosts()[0])
    x = torch.randn(3, 8, 4, 4)
    together = vector(RowMap((0, 1, 2), (1, 1, 1)), x)
    for slot in range(3):
        assert torch.equal(vector(RowMap((slot,), (1,)), x[slot : slot + 1]), together[slot : slot + 1])


def test_it_reads_the_weights_where_they_are() -> None:
    plain = convolution(8, 8, (3, 3))
    vector, rows, x = vectors_only(plain, hosts()[0]), RowMap((0,), (1,)), torch.randn(1, 8, 4, 4)
    vector(rows, x)
    with torch.no_grad():
        plain.weight.of_slot(0).mul_(2)
    assert deviation(vector(rows, x), plain(rows, x)) <= TOLERANCE[torch.float32]


def test_weights_that_lie_in_another_programs_slab() -> None:
    """A content that two layers have in common is stored once (capture/store.py)."""
    store, shared = Store(least_bytes=0), torch.randn(8, 8, 3, 3)
    owner = Layer("owner", channels_last=True, store=store)
    owner.put(0, shared)
    plain = convolution(8, 8, (3, 3), padding=[1, 1])
    weight = plain.weight = Layer("guest", channels_last=True, store=store)
    for slot, content in enumerate((torch.randn(8, 8, 3, 3), shared, torch.randn(8, 8, 3, 3))):
        weight.put(slot, content)
    assert not weight.is_stacked()
    for rows in (RowMap((1,), (2,)), RowMap((0, 1, 2), (1, 1, 1))):
        agree(plain, rows, torch.randn(rows.total, 8, 4, 4), hosts()[0])


@pytest.mark.parametrize(
    ("reason", "plain", "x"),
    [
        ("large images", convolution(4, 4, (3, 3)), torch.randn(1, 4, 70, 70)),
        ("large windows, many pixels", convolution(4, 64, (3, 3)), torch.randn(1, 64, 20, 20)),
        ("dilation", convolution(4, 4, (2, 2), dilation=[2, 2]), torch.randn(1, 4, 5, 5)),
        ("groups", convolution(4, 4, (3, 3), groups=2), torch.randn(1, 4, 5, 5)),
        ("padding by name", convolution(4, 4, (3, 3), padding="same"), torch.randn(1, 4, 5, 5)),
        ("bias and norm", convolution(4, 4, (3, 3), bias=True), torch.randn(1, 4, 5, 5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pytorch_serves_the_rest(reason: str, plain: SlotConv, x: Tensor) -> None:
    vector = VectorConv(plain, plain, hosts()[0])
    assert torch.equal(vector(RowMap((0,), (1,)), x), plain(RowMap((0,), (1,)), x))
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        vectors_only(plain, hosts()[0])(RowMap((0,), (1,)), x)


def test_layers_that_are_shared_in_different_ways_are_pytorchs() -> None:
    plain = convolution(4, 4, (3, 3))
    assert plain.scale is not None
    plain.scale.sharing = 7
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        vectors_only(plain, hosts()[0])(RowMap((0,), (1,)), torch.randn(1, 4, 5, 5))


def test_packed_copies_of_the_rest_are_counted() -> None:
    plain = convolution(96, 96, (3, 3), padding=[1, 1])
    vector = VectorConv(plain, PrepackedConv(plain), hosts()[0])
    vector(RowMap((0,), (1,)), torch.randn(1, 96, 4, 4))
    assert vector.packed_bytes == 0
    vector(RowMap((0,), (1,)), torch.randn(1, 96, 20, 20))
    assert vector.packed_bytes == 96 * 96 * 9 * 4
