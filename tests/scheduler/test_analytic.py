"""The analytic model: waves, padding, bandwidth, launches; what the published shapes must look like."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.ir import Dim, Kernel, Program, Rows, TensorSpec
from spacetime.scheduler.analytic import (
    HALF_SPEED_TILE,
    Analytic,
    Product,
    bandwidth_share,
    kernel_work,
    lane_sizes,
    product_of,
)

TILES = ((64, 64), (8, 128))
DEVICE = Device(
    "model",
    "model",
    num_units=22,
    units_per_atom=4,
    flops_per_unit_us=1e5,
    bytes_per_us=1e4,
    launch_us=3.0,
    tiles=TILES,
)
# Reachable, not peak: batched products of the time came to a third of that. Its library's tile, and one for vectors.
V100 = Device("v100", "model", 80, flops_per_unit_us=8.8e4, bytes_per_us=9e5, launch_us=5.0, tiles=((128, 64), (1, 64)))


def spec(*shape: Dim) -> TensorSpec:
    return TensorSpec(shape, "float32", next((i for i, dim in enumerate(shape) if isinstance(dim, Rows)), None))


def kernel(op: str, kind: str, inputs: tuple[TensorSpec, ...], output: TensorSpec, flops: int, **facts: int) -> Kernel:
    costs = {"bytes_per_row": 0, "weight_bytes": 0} | facts
    return Kernel(0, op, op, kind, inputs, (output,), (), (), "", flops, **costs)


def gemm(rows: int, wide: int, depth: int) -> Kernel:
    """`rows` of the left side for every row of the batch."""
    left, right, out = spec(Rows(rows), depth), spec(wide, depth), spec(Rows(rows), wide)
    moved = 4 * rows * (depth + wide)
    return kernel(
        "linear",
        "gemm",
        (left, right),
        out,
        2 * rows * wide * depth,
        bytes_per_row=moved,
        weight_bytes=4 * wide * depth,
    )


def program(*kernels: Kernel) -> Program:
    return Program("s", (), (), (), tuple(replace(each, index=index) for index, each in enumerate(kernels)))


def waves_us(blocks: int, units: float, tile: tuple[int, int], depth: int, device: Device = DEVICE) -> float:
    """One product, by hand."""
    reuse = tile[0] * tile[1] / sum(tile)
    return (
        ceil(blocks / units) * 2 * tile[0] * tile[1] * depth / device.flops_per_unit_us * (1 + HALF_SPEED_TILE / reuse)
    )


# -- which product a kernel is ------------------------------------------------------------------------------

CONV = (spec(Rows(), 64, 16, 16), spec(128, 64, 3, 3))


@pytest.mark.parametrize(
    ("given_kernel", "product", "depth"),
    [
        (kernel("linear", "gemm", (spec(Rows(), 32, 256), spec(512, 256)), spec(Rows(), 32, 512), 2 * 32 * 512 * 256),
         Product(1, 32, 512, "high"), 256),
        (kernel("addmm", "gemm", (spec(7), spec(Rows(), 5), spec(5, 7)), spec(Rows(), 7), 70),
         Product(1, 1, 7, "high"), 5),
        (kernel("matmul", "gemm", (spec(Rows(), 3, 5), spec(5, 7)), spec(Rows(), 3, 7), 210),
         Product(1, 3, 7, "high"), 5),
        (kernel("matmul", "gemm", (spec(3, 5), spec(Rows(), 5, 7)), spec(Rows(), 3, 7), 210),
         Product(1, 3, 7, "batch"), 5),
        (kernel("bmm", "gemm", (spec(Rows(4), 5, 32), spec(Rows(4), 32, 5)), spec(Rows(4), 5, 5), 2 * 4 * 25 * 32),
         Product(4, 5, 5, "batch"), 32),
        (kernel("matmul", "gemm", (spec(3, 5), spec(5, Rows())), spec(3, Rows()), 30),
         Product(1, 3, 1, "wide"), 5),
        (kernel("scaled_dot_product_attention", "gemm", (spec(Rows(), 4, 32, 64),) * 3, spec(Rows(), 4, 32, 64),
                4 * 4 * 32 * 64 * 32), Product(4, 32, 64, "batch"), 64),
        (kernel("conv2d", "conv", CONV, spec(Rows(), 128, 8, 8), 2 * 128 * 64 * 64 * 9),
         Product(1, 64, 128, "high"), 576),
        (kernel("conv2d", "conv", (spec(Rows(), 32, 8, 8), spec(32, 1, 3, 3)), spec(Rows(), 32, 8, 8), 2 * 32 * 64 * 9),
         Product(32, 64, 1, "high"), 9),
        (kernel("conv_transpose2d", "conv", (spec(Rows(), 256, 2, 2), spec(256, 128, 2, 2)), spec(Rows(), 128, 4, 4),
                2 * 256 * 4 * 128 * 4), Product(1, 4, 512, "high"), 256),
    ],
)  # fmt: skip
def test_the_product_behind_a_kernel(given_kernel: Kernel, product: Product, depth: int) -> None:
    found = product_of(given_kernel)
    assert found == product
    assert product.depth(given_kernel) == depth


def test_what_is_no_product_divides_evenly() -> None:
    relu = kernel("relu", "other", (spec(Rows(), 8),), spec(Rows(), 8), 8_000_000)
    shapeless = Kernel(0, "fc", "linear", "gemm", (), (), (), (), "", 8_000_000, 0, 0)
    assert product_of(relu) is None and product_of(shapeless) is None
    work = kernel_work(program(relu, shapeless), DEVICE, tenants=1, rows=3)
    even = [24_000_000 / (1e5 * units) for units in (4, 8, 12, 16, 22)]
    assert work.compute_us.tolist() == [pytest.approx(even)] * 2


def test_without_tiles_work_divides_evenly() -> None:
    work = kernel_work(program(gemm(10, 100, 1000)), replace(DEVICE, tiles=()), tenants=2, rows=3)
    assert work.compute_us[0] == pytest.approx([6_000_000 / (1e5 * units) for units in (4, 8, 12, 16, 22)])


# -- waves and padding --------------------------------------------------------------------------------------


def test_time_comes_in_whole_waves_of_the_best_tile() -> None:
    work = kernel_work(program(gemm(100, 1000, 256)), DEVICE, tenants=1, rows=2)
    by_hand = [
        min(waves_us(4 * 16, units, (64, 64), 256), waves_us(25 * 8, units, (8, 128), 256))
        for units in (4, 8, 12, 16, 22)
    ]
    assert work.compute_us[0] == pytest.approx(by_hand)


def test_rows_of_different_tenants_never_share_a_tile() -> None:
    device = replace(DEVICE, tiles=((64, 64),))
    one = program(gemm(1, 64, 1000))
    alone, together = (kernel_work(one, device, tenants=tenants, rows=60).compute_us[0] for tenants in (1, 60))
    assert together == pytest.approx([ceil(60 / units) * alone[0] for units in (4, 8, 12, 16, 22)])
    uneven = kernel_work(program(gemm(32, 64, 1000)), device, tenants=2, rows=5).compute_us[0, 0]
    assert uneven == pytest.approx(waves_us(2 + 1, 4, (64, 64), 1000)), "3 rows in two tiles, 2 rows in one"
    weightless = program(replace(gemm(1, 64, 1000), weight_bytes=0))
    assert kernel_work(weightless, device, tenants=60, rows=60).compute_us[0] == pytest.approx(alone)


def test_some_row_counts_are_bad() -> None:
    device = replace(DEVICE, tiles=((64, 64),))
    us = [kernel_work(program(gemm(64, 64, 999)), device, tenants=r, rows=r).compute_us[0, -1] for r in (22, 23, 44)]
    assert us[1] == us[2] == pytest.approx(2 * us[0])


def test_one_row_gains_nothing_from_fusion_and_more_do() -> None:
    one = program(gemm(256, 128, 1152), gemm(256, 256, 256))
    fused, plain = (
        [kernel_work(one, V100, tenants=r, rows=r, fused=form).times(V100).lane_us(80) for r in (1, 16)]
        for form in (True, False)
    )
    assert fused[0] == pytest.approx(plain[0])
    assert fused[1] < plain[1] / 4


def test_plain_is_every_tenant_after_the_other() -> None:
    one = program(gemm(50, 100, 64), kernel("relu", "other", (spec(Rows(), 8),), spec(Rows(), 8), 8, bytes_per_row=64))
    plain = kernel_work(one, DEVICE, tenants=3, rows=7, fused=False)
    own = [kernel_work(one, DEVICE, tenants=1, rows=rows) for rows in (3, 2, 2)]
    assert plain.compute_us == pytest.approx(sum(each.compute_us for each in own))
    assert plain.traffic_bytes == pytest.approx(sum(each.traffic_bytes for each in own))
    assert plain.serial_us.tolist() == [9.0, 9.0]


# -- traffic ------------------------------------------------------------------------------------------------


def test_few_units_cannot_draw_the_whole_bandwidth() -> None:
    assert lane_sizes(DEVICE).tolist() == [4, 8, 12, 16, 22]
    assert bandwidth_share(DEVICE) == pytest.approx([8 / 22, 16 / 22, 1, 1, 1])
    copy = kernel("copy", "other", (spec(Rows(), 8),), spec(Rows(), 8), 1, bytes_per_row=10_000)
    times = kernel_work(program(copy), DEVICE, tenants=1, rows=10).times(DEVICE)
    assert times.us[0] == pytest.approx([3 + 10 * 22 / 8, 3 + 10 * 22 / 16, 13, 13, 13])


def test_every_weight_set_is_read_but_a_lookup_reads_what_it_finds() -> None:
    table = kernel(
        "embedding", "other", (spec(1000, 8), spec(Rows())), spec(Rows(), 8), 8, bytes_per_row=40, weight_bytes=32_000
    )
    work = kernel_work(program(gemm(1, 100, 50), table), DEVICE, tenants=3, rows=6)
    assert work.traffic_bytes.tolist() == [6 * 600 + 3 * 20_000, 6 * 40 * 2]


# -- the published shapes, modelled -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(256, 128, 1152), (128, 256, 1152), (256, 256, 256)])
def test_small_products_alone_waste_a_large_device_and_batched_ones_fill_it(shape: tuple[int, int, int]) -> None:
    """Published, single: 194 to 500 GFLOP/s; 80 and more in one launch: 5 to 5.6 TFLOP/s."""

    def gflops(products: int, fused: bool) -> float:
        one = program(gemm(*shape))
        lane_us = kernel_work(one, V100, tenants=products, rows=products, fused=fused).times(V100).lane_us(80)
        return one.flops(products) / lane_us / 1e3

    assert 200 <= gflops(1, fused=True) <= 600
    assert gflops(40, fused=False) == pytest.approx(gflops(1, fused=True))
    assert gflops(1, fused=True) < gflops(4, fused=True) < gflops(18, fused=True)
    assert all(4500 <= gflops(products, fused=True) <= 6000 for products in (80, 118))


# -- properties ---------------------------------------------------------------------------------------------

SIDE = st.integers(1, 300)
GEMMS = st.builds(gemm, st.integers(1, 64), SIDE, SIDE)


@given(one=GEMMS, rows=st.integers(1, 70), tenants=st.integers(1, 70), fused=st.booleans())
def test_more_units_are_never_slower_and_nothing_beats_the_peak(
    one: Kernel, rows: int, tenants: int, fused: bool
) -> None:
    work = kernel_work(program(one), DEVICE, tenants=tenants, rows=rows, fused=fused)
    assert np.isfinite(work.compute_us).all()
    assert (np.diff(work.compute_us) <= 1e-9).all() and (np.diff(work.times(DEVICE).us) <= 1e-9).all()
    assert (work.compute_us[0] >= one.flops(rows) / (DEVICE.flops_per_unit_us * lane_sizes(DEVICE))).all()


@given(one=GEMMS, rows=st.integers(1, 40), tenants=st.integers(1, 40))
def test_more_rows_and_more_weight_sets_are_never_cheaper_and_fusion_never_loses(
    one: Kernel, rows: int, tenants: int
) -> None:
    def us(tenants: int, rows: int, fused: bool = True) -> float:
        return kernel_work(program(one), DEVICE, tenants=tenants, rows=rows, fused=fused).times(DEVICE).lane_us(5)

    slack = 1e-9
    assert us(1, rows) <= us(1, rows + 1) + slack
    assert us(1, rows) <= us(tenants, rows) + slack
    assert us(tenants, rows) <= us(tenants, rows, fused=False) + slack


def test_equal_kernels_are_computed_once_and_reported_one_by_one() -> None:
    many = program(*[gemm(4, 64, 64), gemm(8, 64, 64)] * 5)
    model = Analytic(many, DEVICE)
    assert len(model.kernels) == 2 and model.counts.tolist() == [5, 5]
    times = kernel_work(many, DEVICE, tenants=2, rows=4).times(DEVICE)
    assert times.num_kernels == 10
    assert (times.us[0::2] == times.us[0]).all() and (times.us[1::2] == times.us[1]).all()
    assert times.us.min() > 0 and times.us.max() < inf
