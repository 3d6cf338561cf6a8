"""Every slot kernel against a loop over rows in float64, each row with the weights of its own tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spacetime.capture.fuse import OperandRef, Ref, RowCount
from spacetime.capture.layer import Layer
from spacetime.kernels import RowMap
from spacetime.kernels.per_tenant import PerTenant
from spacetime.kernels.slot_broadcast import affine, gather, layer_norm
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.slot_embedding import slot_embedding
from spacetime.kernels.slot_linear import slot_linear
from tests.kernels.layers import Sharing, layer, random, row_maps, sharings, slot_of_row

OWN: Sharing = (0, 1, 2, 3)
PerRow = Callable[..., Tensor]  # (rows of one tenant, *its weights) -> result, in float64


def expected(rows: RowMap, x: Tensor, row_dim: int, layers: Sequence[Layer | None], per_row: PerRow) -> Tensor:
    """`per_row` on every row alone; a row may own several consecutive entries of `row_dim`."""
    multiple = x.shape[row_dim] // rows.total
    results = []
    for row, slot in enumerate(slot_of_row(rows)):
        own = x.narrow(row_dim, row * multiple, multiple)
        weights = [None if made is None else made.of_slot(slot).double() for made in layers]
        results.append(per_row(own.double() if own.is_floating_point() else own, *weights))
    return torch.cat(results, row_dim)


def close(result: Tensor, reference: Tensor) -> bool:
    assert result.shape == reference.shape
    return torch.allclose(result.double(), reference, rtol=1e-5, atol=1e-5)


def maybe(present: bool, *args: Any, **options: Any) -> Layer | None:
    return layer(*args, **options) if present else None


# -- linear -------------------------------------------------------------------------------------------


@given(row_maps(), sharings, st.none() | sharings, st.sampled_from([(0, 1, 2), (1, 1, 3), (0, 2, 3), (2, 1, 4)]))
def test_linear(rows: RowMap, sharing: Sharing, bias: Sharing | None, layout: tuple[int, int, int]) -> None:
    """Rows in dimension 0, 1 or 2; one or two entries for each; weights and biases shared in different ways."""
    row_dim, multiple, rank = layout
    shape = [3] * (rank - 1)
    shape[row_dim] = rows.total * multiple
    x = random(*shape, 5)
    w, b = layer(sharing, 4, 5, seed=1), None if bias is None else layer(bias, 4, seed=2)
    reference = expected(rows, x, row_dim, [w, b], F.linear)
    assert close(slot_linear(rows, x, w, b, row_dim), reference)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_equal_runs_over_neighbouring_entries_are_right_wherever_they_begin(
    tenants: int, count: int, first: int
) -> None:
    slots = tuple(range(first, min(first + tenants, 4)))
    rows = RowMap(slots, (count,) * len(slots))
    x, w, b = random(rows.total, 2, 5), layer(OWN, 4, 5, seed=1), layer(OWN, 4, seed=2)
    assert rows.layout(w).block
    assert close(slot_linear(rows, x, w, b), expected(rows, x, 0, [w, b], F.linear))


def test_linear_changes_neither_inputs_nor_weights() -> None:
    rows = RowMap((0, 2), (1, 2))
    x, w, b = random(3, 5), layer(OWN, 4, 5), layer((0, 0, 1, 1), 4, seed=1)
    given = [x, w.stack[:4], b.stack[:2]]  # what lies behind was never written, and may be anything, NaN too
    before = [tensor.clone() for tensor in given]
    slot_linear(rows, x, w, b)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


# -- convolution --------------------------------------------------------------------------------------

RELU = ("relu", (0.0, float("inf")))
RELU6 = ("hardtanh", (0.0, 6.0))


@settings(max_examples=30)
@given(
    rows=row_maps(),
    sharing=sharings,
    own_bias=st.none() | sharings,
    norm=st.none() | sharings,
    activation=st.sampled_from([None, RELU, RELU6]),
    geometry=st.sampled_from([(1, 1), (2, 2), (1, 4)]),
    multiple=st.integers(1, 2),
)
def test_conv2d_with_everything_behind_it(
    rows: RowMap,
    sharing: Sharing,
    own_bias: Sharing | None,
    norm: Sharing | None,
    activation: Any,
    geometry: tuple[int, int],
    multiple: int,
) -> None:
    stride, groups = geometry
    x = random(rows.total * multiple, 4, 5, 5)
    w = layer(sharing, 8, 4 // groups, 3, 3, seed=1, channels_last=True)
    b = None if own_bias is None or norm is not None else layer(own_bias, 8, seed=2)
    scale, shift = (maybe(norm is not None, norm, 8, seed=seed) for seed in (3, 4))
    kernel = SlotConv(
        w, b, scale, shift,
        name="conv2d", stride=[stride] * 2, padding=[1, 1], dilation=[1, 1], groups=groups, activation=activation,
    )  # fmt: skip

    def per_row(x: Tensor, w: Tensor, b: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        y = F.conv2d(x, w, b, stride, 1, 1, groups)
        if scale is not None and shift is not None:
            y = y * scale[:, None, None] + shift[:, None, None]
        return y if activation is None else y.clamp(*activation[1])

    assert close(kernel(rows, x), expected(rows, x, 0, [w, b, scale, shift], per_row))


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_of_other_ranks(rank: int) -> None:
    rows = RowMap((0, 1, 3), (1, 3, 2))
    x = random(rows.total, 3, *[4] * rank)
    w, b = layer(OWN, 5, 3, *[2] * rank, seed=1), layer((0, 0, 0, 1), 5, seed=2)
    geometry: dict[str, Any] = {
        "stride": [1] * rank,
        "padding": [0] * rank,
        "dilation": [1] * rank,
        "groups": 1,
        "activation": None,
    }
    kernel = SlotConv(w, b, None, None, name=f"conv{rank}d", **geometry)
    assert close(kernel(rows, x), expected(rows, x, 0, [w, b], getattr(F, f"conv{rank}d")))


# -- small weights ------------------------------------------------------------------------------------


@given(row_maps(), sharings, sharings, st.booleans(), st.booleans(), st.sampled_from([(0, 1, 2), (1, 1, 3), (0, 2, 3)]))
def test_layer_norm(
    rows: RowMap, w: Sharing, b: Sharing, has_weight: bool, has_bias: bool, layout: tuple[int, int, int]
) -> None:
    row_dim, multiple, rank = layout
    shape = [3] * (rank - 1)
    shape[row_dim] = rows.total * multiple
    x = random(*shape, 6)
    layers = [maybe(has_weight, w, 6, seed=1), maybe(has_bias, b, 6, seed=2)]

    def per_row(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return F.layer_norm(x, [6], w, b, 1e-5)

    result = layer_norm(rows, x, layers[0], layers[1], [6], 1e-5, row_dim)
    assert close(result, expected(rows, x, row_dim, layers, per_row))


@given(row_maps(), sharings, sharings, st.integers(1, 2), st.sampled_from([(), (4,), (4, 3)]))
def test_affine(rows: RowMap, scale: Sharing, shift: Sharing, multiple: int, space: tuple[int, ...]) -> None:
    x = random(rows.total * multiple, 5, *space)
    layers = [layer(scale, 5, seed=1), layer(shift, 5, seed=2)]

    def per_row(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        channels = (5, *[1] * len(space))
        return x * scale.view(channels) + shift.view(channels)

    assert close(affine(rows, x, *layers), expected(rows, x, 0, layers, per_row))


WEIGHT_SHAPES = [(), (1,), (4,), (3, 1), (3, 4), (1, 4), (3, 1, 4), (1, 1, 1)]


@given(row_maps(), sharings, st.sampled_from(WEIGHT_SHAPES), st.integers(0, 2), st.integers(1, 2))
def test_gather_lays_weights_out_as_they_would_broadcast(
    rows: RowMap, sharing: Sharing, shape: tuple[int, ...], row_dim: int, multiple: int
) -> None:
    """x + gathered is, row by row, x + the weight of the row's tenant."""
    sizes = [3, 3, 4]
    sizes[row_dim] = rows.total * multiple
    # Where the rows are, a weight has no dimension or one of size 1.
    shape = tuple(1 if 3 - len(shape) + i == row_dim else size for i, size in enumerate(shape))
    shape = tuple(1 if size not in (1, sizes[3 - len(shape) + i]) else size for i, size in enumerate(shape))
    x, w = random(*sizes), layer(sharing, *shape, seed=1)
    result = x + gather(rows, w, 3, row_dim, multiple)
    assert close(result, expected(rows, x, row_dim, [w], torch.add))


# -- embedding ----------------------------------------------------------------------------------------


@given(row_maps(), sharings, st.integers(0, 1), st.integers(1, 2))
def test_embedding(rows: RowMap, sharing: Sharing, row_dim: int, multiple: int) -> None:
    sizes = [3, 3]
    sizes[row_dim] = rows.total * multiple
    indices = torch.randint(6, sizes, generator=torch.Generator().manual_seed(0))
    table = layer(sharing, 6, 5, seed=1)
    assert close(slot_embedding(rows, indices, table, row_dim), expected(rows, indices, row_dim, [table], F.embedding))


@pytest.mark.parametrize("wrong", [6, 7, -1])
@pytest.mark.parametrize("slots", [(0,), (0, 1), (1, 0)])
def test_an_index_out_of_range_never_reads_a_neighbours_table(slots: tuple[int, ...], wrong: int) -> None:
    rows = RowMap(slots, (1,) * len(slots))
    indices = torch.zeros(len(slots), 2, dtype=torch.long)
    indices[0, 1] = wrong
    with pytest.raises(IndexError, match="index out of range"):
        slot_embedding(rows, indices, layer(OWN, 6, 5))


# -- one call per tenant ------------------------------------------------------------------------------


@given(row_maps(), sharings, st.integers(0, 1), st.integers(1, 2))
def test_per_tenant(rows: RowMap, sharing: Sharing, row_dim: int, multiple: int) -> None:
    sizes = [3, 3]
    sizes[row_dim] = rows.total * multiple
    x, w = random(*sizes), layer(sharing, 3, 3, seed=1)

    def call(x: Tensor, w: Tensor, shape: list[int], *, factor: float) -> Tensor:
        assert shape == [x.shape[row_dim]]
        return x * factor + w.sum()

    kernel = PerTenant(
        call, [Ref("x"), OperandRef(0), [RowCount(multiple)]], {"factor": 2.0}, {"x": row_dim}, row_dim, [w]
    )
    assert close(kernel(rows, x), expected(rows, x, row_dim, [w], lambda x, w: 2 * x + w.sum()))


def test_per_tenant_results_may_be_several() -> None:
    rows = RowMap((0, 2), (2, 1))
    x, w = random(3, 4), layer(OWN, 4, seed=1)

    def call(x: Tensor, w: Tensor) -> tuple[Tensor, None, Tensor]:
        return x + w, None, (x * w).t()

    kernel = PerTenant(call, [Ref("x"), OperandRef(0)], {}, {"x": 0}, [0, None, 1], [w])
    added, nothing, multiplied = kernel(rows, x)
    assert nothing is None
    assert close(added, expected(rows, x, 0, [w], torch.add))
    assert close(multiplied.t(), expected(rows, x, 0, [w], torch.mul))


# -- isolation ----------------------------------------------------------------------------------------

GEOMETRY: dict[str, Any] = {"stride": [1], "padding": [1], "dilation": [1], "groups": 1, "activation": RELU}
KERNELS: dict[str, Callable[[RowMap, Tensor], Tensor]] = {
    "linear": lambda rows, x: slot_linear(rows, x, layer(OWN, 4, 6), layer(OWN, 4)),
    "linear, one weight": lambda rows, x: slot_linear(rows, x, layer((0, 0, 0, 0), 4, 6), layer(OWN, 4)),
    "conv": SlotConv(layer(OWN, 4, 5, 3), layer(OWN, 4), None, None, name="conv1d", **GEOMETRY),
    "layer norm": lambda rows, x: layer_norm(rows, x, layer(OWN, 6), layer(OWN, 6), [6], 1e-5, 0),
    "affine": lambda rows, x: affine(rows, x, layer(OWN, 5), layer(OWN, 5)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 3, 2)])
def test_what_is_not_a_number_stays_in_its_row(name: str, counts: tuple[int, ...]) -> None:
    rows = RowMap((0, 1, 2), counts)
    x = random(rows.total, 5, 6)
    clean = KERNELS[name](rows, x)
    x[1] = float("nan")
    result = KERNELS[name](rows, x)
    others = [row for row in range(rows.total) if row != 1]
    assert result[1].isnan().any()
    assert torch.equal(result[others], clean[others])
