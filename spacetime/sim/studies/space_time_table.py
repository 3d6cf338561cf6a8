"""Study: the table of the Space-Time paper (Jain et al., 2018), many small matrix products on a V100. No torch.

One round: R tenants have one SGEMM each, with weights of their own, all at once. Time-only runs them one after another,
space-only side by side through the hardware's queues, space-time as one batched product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spacetime._version import __version__
from spacetime.device import Device
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.analytic import Analytic
from spacetime.scheduler.protocols import CostModel, Policy
from spacetime.scheduler.streams import streams
from spacetime.scheduler.time_slice import time_slice
from spacetime.sim import architectures, devices
from spacetime.sim.simulate import simulate
from spacetime.sim.studies.study import Cell, Claim, Column, Progress, Study, Table, geomean
from spacetime.values import Value
from spacetime.workload import closed_loop

HYPER_Q_QUEUES = 32  # kernels that a GPU since Kepler takes in at once
MOST_KERNELS = 120
QUICK_KERNELS = (1, 2, 8, 10, 18, 20, 40, 118)
TILES = ((32, 32), (32, 64), (64, 64), (64, 128), (128, 128))  # of activations by weights: what cuBLAS 9 may have


@dataclass(frozen=True, slots=True)
class Shape(Value):
    """C (M x N) = A (M x K, the weights) B (K x N)."""

    name: str
    m: int
    n: int
    k: int

    @property
    def model(self) -> str:
        return f"gemm_{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


MATVEC = Shape("matvec", 512, 1, 512)
CONV = Shape("conv2_2", 256, 128, 1152)
SQUARE = Shape("square", 256, 256, 256)


@dataclass(frozen=True, slots=True)
class Rates(Value):
    """GFLOP/s of one round, by way of sharing."""

    space_time: float
    space_only: float
    time_only: float


# Published: figure 7, kernels -> rates of conv2_2, and table 1 with its geometric means.
PAPER = "Space-Time, 2018"
CONV_RATES: Mapping[int, Rates] = {
    1: Rates(194, 275, 292),
    8: Rates(1470, 875, 454),
    18: Rates(3213, 1114, 478),
    40: Rates(4866, 1274, 492),
    80: Rates(5585, 1255, 497),
    118: Rates(5421, 1279, 499),
}
FITTED_TO = (1, 118)  # of these rows; the other rows and the other shapes are predictions
GAINS: tuple[tuple[Shape, str, Mapping[int, float], float], ...] = (  # over which, by kernels, geometric mean
    (MATVEC, "time_only", {10: 1.21, 20: 2.14}, 2.48),
    (CONV, "space_only", {10: 1.68, 20: 2.88}, 3.23),
    (SQUARE, "space_only", {10: 2.42, 20: 3.47}, 4.63),
)
CONV_OVER_TIME_ONLY = 7.71


@dataclass(frozen=True, slots=True)
class Setting(Value):
    """What a round runs on. A library has other kernels for one product than for a batch: each is a device."""

    name: str
    single: Device
    batched: Device
    round_us: float  # what every round takes besides its kernels


def study(*, quick: bool, progress: Progress) -> Study:
    """Space-Time's table: 1 to 120 small SGEMMs on a V100, one after another, side by side, and fused."""
    kernels = QUICK_KERNELS if quick else (1, *range(2, MOST_KERNELS + 1, 2))
    fitted, sheet = fit(), Setting("data sheet", devices.find("v100"), devices.find("v100"), 0.0)
    runs = [(shape, count) for shape in (CONV, MATVEC, SQUARE) for count in kernels]
    rates: dict[tuple[str, str, int], Rates] = {}
    own: dict[tuple[str, int], float] = {}
    for done, (shape, count) in enumerate(runs):
        progress(done, len(runs))
        for setting in (fitted, sheet):
            rates[setting.name, shape.name, count] = measure(shape, count, setting)
        own[shape.name, count] = _rate(shape, count, "space_time", sheet.batched, sheet.round_us)
    errors = prediction_errors(rates, fitted)
    return Study(
        name="space_time_table",
        title="Space-Time's table",
        device="v100 (data sheet), and v100 as fitted to cuBLAS 9",
        version=__version__,
        is_quick=quick,
        question="What do many small matrix products of different tenants gain from running as one? The paper measured "
        "three ways of sharing a V100, and this study plays the same rounds on a model of it.",
        method=_method(fitted),
        claims=tuple(_claims(rates, fitted, kernels)),
        tables=(
            _conv_table(rates, own, fitted, sheet, kernels),
            _gains_table(rates, own, fitted, sheet, kernels),
        ),
        notes=_notes(rates, own, fitted, sheet, errors, kernels),
    )


def measure(shape: Shape, num_kernels: int, setting: Setting) -> Rates:
    """One round under each way of sharing."""
    return Rates(
        space_time=_rate(shape, num_kernels, super_kernel, setting.batched, setting.round_us),
        space_only=_rate(shape, num_kernels, hyper_q, setting.single, setting.round_us),
        time_only=_rate(shape, num_kernels, time_slice, setting.single, setting.round_us),
    )


def _rate(shape: Shape, num_kernels: int, policy: str | Policy, device: Device, round_us: float) -> float:
    """GFLOP/s."""
    tenants = [f"{shape.name}/{index}" for index in range(num_kernels)]
    report = simulate(closed_loop(tenants, 1, models=[shape.model]), policy, device, oracle_costs=True)
    assert report.first_error is None and report.completed == num_kernels
    return num_kernels * shape.flops / (report.duration_us + round_us) / 1e3


def hyper_q(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Space-only: `streams`, as far as there are hardware queues."""
    plan = streams(snapshot, costs)
    return replace(plan, lanes=plan.lanes[: max(0, HYPER_Q_QUEUES - len(snapshot.running))])


def super_kernel(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Space-time as the paper did it: everything that waits is one product on the whole device, whatever it costs."""
    if snapshot.running or not snapshot.tenants:
        return Plan()
    requests = tuple(tenant.waiting[0] for tenant in snapshot.tenants)
    return Plan((Lane(snapshot.tenants[0].cohort, requests, (Segment(snapshot.device.whole),), fused=True),))


def fit() -> Setting:
    """Rates and tiles of cuBLAS 9 on a V100, from the two published rows of FITTED_TO.

    The time-only rates tell what a round costs besides its kernels, and how long one kernel takes alone. Of the tiles
    that could do that, a single product uses those whose overlap comes closest to space-only in the last row. For the
    batched product the last row tells the rate, the first one the tile.
    """
    sheet, (few, many) = devices.find("v100"), FITTED_TO
    round_few_us, round_many_us = (_round_us(count, CONV_RATES[count].time_only) for count in FITTED_TO)
    kernel_us = (round_many_us - round_few_us) / (many - few)
    round_us = round_few_us - few * kernel_us
    singles = [_with_tile(sheet, "v100-cublas9-sgemm", tile, 1, kernel_us) for tile in TILES]
    space_only = CONV_RATES[many].space_only
    single = min(singles, key=lambda device: _distance(_rate(CONV, many, hyper_q, device, round_us), space_only))
    batched_us = _round_us(many, CONV_RATES[many].space_time) - round_us
    batches = [_with_tile(sheet, "v100-cublas9-batched", tile, many, batched_us) for tile in TILES]
    alone = CONV_RATES[few].space_time
    batched = min(batches, key=lambda device: _distance(_rate(CONV, few, super_kernel, device, round_us), alone))
    return Setting("fitted", single, batched, round_us)


def _round_us(num_kernels: int, gflops: float) -> float:
    return num_kernels * CONV.flops / gflops / 1e3


def _with_tile(sheet: Device, name: str, tile: tuple[int, int], num_kernels: int, duration_us: float) -> Device:
    """A device that has this tile only, and takes so long for conv2_2 in one launch."""
    device = replace(sheet, name=name, tiles=(tile,))
    work = Analytic(architectures.program(CONV.model), device).work(num_kernels, num_kernels, True)
    scale = float(work.compute_us[0, -1]) / (duration_us - device.launch_us)
    return replace(device, flops_per_unit_us=device.flops_per_unit_us * scale)


def _distance(modelled: float, published: float) -> float:
    return max(modelled / published, published / modelled)


AllRates = Mapping[tuple[str, str, int], Rates]  # by setting, shape, kernels


def prediction_errors(rates: AllRates, setting: Setting) -> dict[str, list[float]]:
    """Modelled over published less one, for conv2_2 in the rows that nothing was fitted to, by way of sharing."""
    counts = [count for count in CONV_RATES if count not in FITTED_TO and (setting.name, CONV.name, count) in rates]
    return {
        way: [
            getattr(rates[setting.name, CONV.name, count], way) / getattr(CONV_RATES[count], way) - 1
            for count in counts
        ]
        for way in ("space_time", "space_only", "time_only")
    }


def _gain(rates: AllRates, setting: Setting, shape: Shape, over: str, counts: Sequence[int]) -> float:
    """Of space-time; geometric mean."""
    found = [rates[setting.name, shape.name, count] for count in counts]
    return geomean(each.space_time / getattr(each, over) for each in found)


def _claims(rates: AllRates, fitted: Setting, kernels: Sequence[int]) -> list[Claim]:
    """Of the fitted setting. A quick look has no geometric means: it has too few rounds."""
    several = [count for count in kernels if count > 1]
    claims, means = [], []
    for shape, over, by_kernels, mean in GAINS:
        for count, published in by_kernels.items():
            name = f"{shape.name}, R = {count}: space-time over {_words(over)}"
            claims.append(Claim(name, published, _gain(rates, fitted, shape, over, [count]), PAPER))
        means.append((shape, over, mean))
    means.append((CONV, "time_only", CONV_OVER_TIME_ONLY))
    if several[-1] == MOST_KERNELS:
        for shape, over, mean in means:
            name = f"{shape.name}, mean of R = 2..{MOST_KERNELS}: space-time over {_words(over)}"
            claims.append(Claim(name, mean, _gain(rates, fitted, shape, over, several), PAPER))
    return claims


def _conv_table(
    rates: AllRates, own: Mapping[tuple[str, int], float], fitted: Setting, sheet: Setting, kernels: Sequence[int]
) -> Table:
    columns = [Column("kernels"), Column("row is")]
    for source in ("published", "fitted", "data sheet"):
        columns += [Column(f"{source}: space-time", ".0f"), Column("space-only", ".0f"), Column("time-only", ".0f")]
    columns.append(Column("policy space_time", ".0f"))
    rows: list[tuple[Cell, ...]] = []
    for count in (count for count in CONV_RATES if count in kernels):
        row: list[Cell] = [count, "fitted to" if count in FITTED_TO else "predicted"]
        for each in (
            CONV_RATES[count],
            rates[fitted.name, CONV.name, count],
            rates[sheet.name, CONV.name, count],
        ):
            row += [each.space_time, each.space_only, each.time_only]
        rows.append((*row, own[CONV.name, count]))
    return Table(
        "conv2_2 in GFLOP/s: published, on the fitted V100, on the V100 of the data sheet", (*columns,), (*rows,)
    )


def _gains_table(
    rates: AllRates, own: Mapping[tuple[str, int], float], fitted: Setting, sheet: Setting, kernels: Sequence[int]
) -> Table:
    several = [count for count in kernels if count > 1]
    columns = (
        Column("shape"),
        Column("M x N x K"),
        Column("space-time over"),
        Column("published", ".2f"),
        Column("fitted", ".2f"),
        Column("data sheet", ".2f"),
        Column("policy space_time on the data sheet", ".2f"),
    )
    published = {(shape.name, over): mean for shape, over, _, mean in GAINS}
    published[CONV.name, "time_only"] = CONV_OVER_TIME_ONLY
    rows: list[tuple[Cell, ...]] = []
    for shape in (MATVEC, CONV, SQUARE):
        for over in ("time_only", "space_only"):
            rows.append(
                (
                    shape.name,
                    f"{shape.m} x {shape.n} x {shape.k}",
                    _words(over),
                    published.get((shape.name, over)),
                    _gain(rates, fitted, shape, over, several),
                    _gain(rates, sheet, shape, over, several),
                    geomean(own[shape.name, c] / getattr(rates[sheet.name, shape.name, c], over) for c in several),
                )
            )
    title = f"Gain of space-time, geometric mean of R = {several[0]}..{several[-1]} ({len(several)} rounds)"
    return Table(title, columns, (*rows,))


def _method(fitted: Setting) -> tuple[str, ...]:
    return (
        "A round: R tenants of one architecture and weights of their own have one request each, at the same moment. "
        "Its rate is R times the operations of one, over the time until the last one ends. R is even, and 1.",
        "Time-only is the policy `time_slice`, space-only `streams` through the 32 queues of Hyper-Q, space-time a "
        "policy that always runs everything as one product, as the paper did. All run in the simulator, under the loop "
        "that serves real devices. The policy `space_time` may also decide otherwise; it ran on the data sheet's V100.",
        "Data sheet: the device `v100`, 15.7 TFLOP/s, the best of three tiles for every product, nothing else.",
        f"Fitted: two devices, because cuBLAS has other kernels for one product than for a batch. They were fitted to "
        f"the published rows R = {FITTED_TO[0]} and R = {FITTED_TO[1]} of conv2_2, to nothing else, by `fit()` in "
        f"spacetime/sim/studies/space_time_table.py. The result: {_device_words(fitted.single)} for single products, "
        f"{_device_words(fitted.batched)} for batches, and {fitted.round_us:.0f} us for every round besides its "
        "kernels. Every other row, and the two other shapes, are predictions. The claims below are of this setting.",
        "Published: Jain et al., Dynamic Space-Time Scheduling for GPU Inference, 2018, figure 7 and table 1. "
        "Published figures for square differ, 4.63x or 4.93x on average and 3.47x or 2.47x at R = 20; "
        "here they are the former.",
    )


def _notes(
    rates: AllRates,
    own: Mapping[tuple[str, int], float],
    fitted: Setting,
    sheet: Setting,
    errors: Mapping[str, Sequence[float]],
    kernels: Sequence[int],
) -> tuple[str, ...]:
    several = [count for count in kernels if count > 1]
    few, many = FITTED_TO
    alone, together = (rates[sheet.name, CONV.name, count] for count in FITTED_TO)
    overlapped, published = rates[fitted.name, CONV.name, many], CONV_RATES[many]
    without_queues = _rate(CONV, many, streams, fitted.single, fitted.round_us)
    worst = {way: max(found, key=abs) for way, found in errors.items()}
    lost = {(name, count): own[name, count] / _best(rates[sheet.name, name, count]) for name, count in own}
    (worst_name, worst_count), worst_loss = min(lost.items(), key=lambda item: item[1])
    num_lost = sum(share < 0.97 for share in lost.values())
    return (
        f"conv2_2 in the rows that nothing was fitted to: space-time is off by at most {worst['space_time']:+.0%}, "
        f"space-only by {worst['space_only']:+.0%}, time-only by {worst['time_only']:+.0%}.",
        "What the fit says of the measurement: a single product is cut into many small tiles, so that two or three of "
        f"them fill the device. That is why space-only ends at {published.space_only / published.time_only:.1f} times "
        f"the rate of time-only (modelled: {overlapped.space_only / overlapped.time_only:.1f}). The 32 queues are not "
        f"why: without that limit R = {many} reaches {without_queues:.0f} GFLOP/s instead of "
        f"{overlapped.space_only:.0f}. A batch is cut into large tiles, which need many products to fill the device "
        "and then do more than four times as much. The fit is one explanation that agrees with the rows; that cuBLAS 9 "
        "has these tiles was not checked.",
        "Space-only is modelled a little too slow where R is large: the contention model takes 10% for neighbours on "
        "the same units, and the measured kernels seem to lose less. The gaps of up to 25% between tenants that the "
        "paper saw under MPS do not occur in the model.",
        "square follows from the same two devices without any further fit. Its average gain is too small, perhaps "
        "because the tiles that suit conv2_2 need not be those that cuBLAS has for square.",
        "matvec is predicted badly. The model has no kernel for matrix times vector and cuts N = 1 into tiles that are "
        "almost empty: too slow when single, for which cuBLAS has gemv, so that batching seems to gain more than it "
        "did.",
        f"The V100 of the data sheet is much too fast for one small product, {alone.time_only:.0f} GFLOP/s instead "
        f"of {CONV_RATES[few].time_only:.0f}: it takes the best tile for each size and runs it at the peak that "
        f"large products reach. Fusing then gains less, {_gain(rates, sheet, CONV, 'space_only', several):.2f}x over "
        f"space-only and {_gain(rates, sheet, CONV, 'time_only', several):.2f}x over time-only, and reaches "
        f"{together.space_time:.0f} GFLOP/s instead of {published.space_time:.0f}. Absolute rates of this device are "
        "upper bounds.",
        f"The policy `space_time` had less than 97% of the best of the three ways in {num_lost} of {len(lost)} rounds "
        f"on the data sheet's V100; least in {worst_name} at R = {worst_count}, {worst_loss:.0%}. There the fused "
        "product leaves most of its last wave empty, and kernels that overlap on the same units do not, in the model. "
        "The policy isolates its lanes, so it cannot do that.",
    )


def _best(rates: Rates) -> float:
    return max(rates.space_time, rates.space_only, rates.time_only)


def _device_words(device: Device) -> str:
    (tile_n, tile_m), units = device.tiles[0], device.num_units
    reuse = tile_m * tile_n / (tile_m + tile_n)
    tflops = device.flops_per_unit_us * units / 1e6 * reuse / (reuse + 16)
    return f"`{device.name}`, tiles of {tile_m} x {tile_n} at {tflops:.1f} TFLOP/s with all units busy"


def _words(way: str) -> str:
    return way.replace("_", "-")
