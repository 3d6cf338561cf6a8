"""`spacetime plan`: the lanes of a policy when every tenant asks at once, and the launches that models could share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spacetime import workload as workloads
from spacetime.cli.output import MODELLED_HELP, MODELS_HELP, POLICIES_HELP
from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merging import align, explain
from spacetime.plan import Lane
from spacetime.sim import architectures, devices
from spacetime.sim.simulate import Simulation
from spacetime.trace import LaneEvent, Trace

BAR_WIDTH = 32
MOST_NAMES = 3


def plan(
    policy: Annotated[str, typer.Option(help=f"{POLICIES_HELP}.")] = "space_time",
    device: Annotated[str, typer.Option(help=MODELLED_HELP)] = "h200",
    tenants: Annotated[int, typer.Option(min=1, help="Tenants; the models take turns.")] = 8,
    model: Annotated[list[str] | None, typer.Option(help=MODELS_HELP)] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of every request.")] = 1,
    slo_ms: Annotated[float | None, typer.Option(min=0.001, help="Every tenant's objective.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also: which kernels of these models could share launches?")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lanes as JSON instead of a table.")] = False,
) -> None:
    """Show the lanes of one request per tenant, all at once, on a modelled device. Every figure is modelled."""
    modelled, models = devices.find(device), model or ["resnet50"]
    programs = {name: architectures.program(name) for name in models}
    names = [f"{models[index % len(models)]}/{index // len(models)}" for index in range(tenants)]
    slo_us = None if slo_ms is None else round(slo_ms * 1e3)
    asked = workloads.closed_loop(names, 1, (rows,), models=models, slo_us=slo_us)
    simulation = Simulation(asked, policy, modelled, oracle_costs=True, trace_events=tenants)
    simulation.run()
    trace = Trace(
        tuple(
            sorted(simulation.trace.events, key=lambda event: (event.start_us, event.lane.segments[0].partition.atoms))
        )
    )
    if as_json:
        print(trace.to_json())
        return
    cohorts = {program.signature: name for name, program in programs.items()}
    _print(trace.events, cohorts, modelled, policy)
    if merge:
        _print_merged(programs)


def _print(events: Sequence[LaneEvent], cohorts: dict[str, str], device: Device, policy: str) -> None:
    end_us = max(event.end_us for event in events)
    console = Console(width=max(Console().width, 100))
    console.print(
        f"modelled: {device.name}, {device.num_units} units, policy {policy}: "
        f"{len(events)} lanes in {end_us / 1e3:.2f} ms",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading, justify in (
        ("model", "left"),
        ("tenants", "left"),
        ("rows", "right"),
        ("form", "left"),
        ("units", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading != "tenants")  # type: ignore[arg-type]
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("from 0 to the end", no_wrap=True)
    for event in events:
        lane = event.lane
        table.add_row(
            cohorts.get(lane.cohort, lane.cohort),
            _names(lane),
            str(lane.num_rows),
            "fused" if lane.fused else "plain",
            _units(lane, device),
            f"{(event.end_us - event.start_us) / 1e3:.2f}",
            _bar(event.start_us / end_us, event.end_us / end_us),
        )
    console.print(table)


def _names(lane: Lane) -> str:
    names = [name.rpartition("/")[2] for name in lane.tenants]
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{', '.join(names[: MOST_NAMES - 1])}, ... ({len(names)})"


def _units(lane: Lane, device: Device) -> str:
    """How many, and where; a lane that the device places is nowhere in particular."""
    where = "placed" if not lane.atoms else _range(lane.atoms)
    return f"{lane.units}/{device.num_units} {where}" if lane.units < device.num_units else f"{lane.units}"


def _range(atoms: int) -> str:
    first = (atoms & -atoms).bit_length() - 1
    return f"@{first}" if atoms.bit_count() == 1 else f"@{first}-{atoms.bit_length() - 1}"


def _bar(start: float, end: float) -> str:
    first = round(start * BAR_WIDTH)
    return " " * first + "█" * max(1, round(end * BAR_WIDTH) - first)


def _print_merged(programs: dict[str, Program]) -> None:
    if len(programs) < 2:
        raise OptionError("there is nothing to merge", "one model was named", "repeat --model, or leave out --merge")
    merged = align(tuple(programs.values()))
    names = {program.signature: name for name, program in programs.items()}
    print(explain(merged, names=[names[program.signature] for program in merged.programs]))
