"""What KRISP's evaluation would look like on devices of other assumptions. Only the krisp study imports it. No torch.

What no data sheet tells is assumed (Device, sim/devices.py). Here one assumption at a time is another: which of them do
the published figures need?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spacetime.device import Device
from spacetime.sim.studies.study import Cell, Column, Table, geomean
from spacetime.values import Value

POLICIES = ("streams", "static", "krisp")
AS_IT_IS = "as in this study"

Rate = Callable[[str, str, int, int, Device], float]  # policy, model, workers, rows, device: requests per second


@dataclass(frozen=True, slots=True)
class Assumption(Value):
    """`interference`, `launch_us`, `least_tile`: None as it is."""

    words: str
    interference: float | None = None
    launch_us: float | None = None
    least_tile: int | None = None

    def applied(self, device: Device) -> Device:
        return replace(
            device,
            name=f"{device.name}, {self.words}",
            interference=device.interference if self.interference is None else self.interference,
            launch_us=device.launch_us if self.launch_us is None else self.launch_us,
            tiles=tuple(tile for tile in device.tiles if min(tile) >= (self.least_tile or 0)),
        )


@dataclass(frozen=True, slots=True)
class Found(Value):
    """Throughput over one worker alone: geometric mean over the models."""

    assumption: Assumption
    rows: int
    streams: float
    static: float
    krisp: float

    @property
    def over_static(self) -> float:
        return self.krisp / self.static

    @property
    def over_streams(self) -> float:
        return self.krisp / self.streams


WITHOUT_LAUNCHES = Assumption("launches take no time", launch_us=0.0)
ASSUMPTIONS = (
    Assumption(AS_IT_IS),
    Assumption("a neighbour on the same units doubles a kernel's time", interference=1.0),
    Assumption("a neighbour on the same units triples it", interference=2.0),
    Assumption("a neighbour on the same units makes it five times as long", interference=4.0),
    WITHOUT_LAUNCHES,
    Assumption("no tiles smaller than 64 x 64", least_tile=64),
    Assumption("no tiles smaller than 128 x 128", least_tile=128),
)


def play(
    device: Device, models: Sequence[str], workers: int, all_rows: Sequence[int], rate: Rate, begin: Callable[[], None]
) -> tuple[Found, ...]:
    """Every assumption with every size of request."""
    found = []
    for assumption in ASSUMPTIONS:
        begin()
        other = assumption.applied(device)
        for rows in all_rows:
            alone = {model: rate("time_slice", model, 1, rows, other) for model in models}
            streams, static, krisp = (
                geomean(rate(policy, model, workers, rows, other) / alone[model] for model in models)
                for policy in POLICIES
            )
            found.append(Found(assumption, rows, streams, static, krisp))
    return tuple(found)


def table(found: Sequence[Found], workers: int, published: tuple[float, float, float]) -> Table:
    """`published`: of krisp over one worker alone, over static, and over streams."""
    columns = [Column("assumption"), Column("rows")]
    columns += [Column(name, ".2f") for name in ("streams", "static", "krisp", "krisp / static", "krisp / streams")]
    over_alone, over_static, over_streams = published
    first: tuple[Cell, ...] = (
        "published",
        None,
        over_alone / over_streams,
        over_alone / over_static,
        over_alone,
        over_static,
        over_streams,
    )
    rows = [
        (each.assumption.words, each.rows, each.streams, each.static, each.krisp, each.over_static, each.over_streams)
        for each in found
    ]
    title = f"{workers} workers on devices of other assumptions: throughput over one worker alone"
    return Table(title, (*columns,), (first, *rows))
