"""`spacetime simulate`: a workload under one policy or several on a modelled device, side by side in one table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spacetime import workload as workloads
from spacetime.cli.output import (
    MODELLED_HELP,
    MODELS_HELP,
    POLICIES_HELP,
    TRACE_HELP,
    check_writable,
    progress_bar,
    write_trace,
)
from spacetime.errors import OptionError
from spacetime.scheduler.registry import get_policy, policy_names
from spacetime.sim import architectures, devices
from spacetime.sim.report import Report
from spacetime.sim.simulate import Simulation
from spacetime.values import Value
from spacetime.workload import Workload

ALL = "all"
TRACED_LANES = 100_000
TABLE_WIDTH = 92  # a figure cut off is worse than a line that wraps
GENERATED = "tenants, model, rate, requests, rows, seconds, slo-ms"


@dataclass(frozen=True, slots=True)
class Simulations(Value):
    """What --json prints: one report per policy."""

    reports: tuple[Report, ...]


def simulate(
    context: typer.Context,
    workload: Annotated[
        Path | None, typer.Argument(help="A Workload as JSON. Default: Poisson arrivals by the options below.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeat for several: {POLICIES_HELP}; {ALL}: every one. Default: space_time."),
    ] = None,
    device: Annotated[str, typer.Option(help=MODELLED_HELP)] = "h200",
    tenants: Annotated[int, typer.Option(min=1, help="Tenants; the models take turns.")] = 8,
    model: Annotated[list[str] | None, typer.Option(help=MODELS_HELP)] = None,
    rate: Annotated[float, typer.Option(min=0, help="Requests per second of each tenant.")] = 100.0,
    requests: Annotated[
        int | None, typer.Option(min=1, help="A closed loop of so many requests per tenant, instead of a rate.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="A request has from 1 to so many rows.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="How long requests come.")] = 1.0,
    slo_ms: Annotated[float | None, typer.Option(min=0.001, help="Every tenant's objective.")] = None,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds at the beginning that are not reported.")] = 0.0,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of log(duration) of lanes.")] = 0.0,
    decision_us: Annotated[int, typer.Option(min=0, help="How long a decision takes.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, rows and noise.")] = 0,
    trace: Annotated[Path | None, typer.Option(help=TRACE_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a workload would see under a policy on a device, without the device. Every figure is modelled."""
    names = _policies(policy)
    check_writable("trace", trace)
    modelled = devices.find(device)
    played = _generate(tenants, model, rate, requests, rows, seconds, seed, slo_ms)
    if workload is not None:
        _refuse_generator_options(context, workload)
        played = _load(workload)
    reports = []
    for name in names:
        simulation = Simulation(
            played,
            name,
            modelled,
            seed,
            noise=noise,
            decision_us=decision_us,
            warm_up_s=warm_up,
            trace_events=TRACED_LANES if trace is not None else 0,
        )
        with progress_bar() as show:
            reports.append(simulation.run(partial(show, name)))
    if trace is not None:
        write_trace(simulation.trace, trace)
    if as_json:
        print(Simulations(tuple(reports)).to_json())
    else:
        _print(reports)
    if any(report.first_error for report in reports):
        raise typer.Exit(1)


def _policies(asked: list[str] | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(asked or ("space_time",)))
    if ALL in names:
        return policy_names()
    for name in names:
        get_policy(name)  # a wrong name is an error before anything is simulated
    return names


def _generate(
    num_tenants: int,
    models: list[str] | None,
    rate_per_s: float,
    num_requests: int | None,
    max_rows: int,
    seconds: float,
    seed: int,
    slo_ms: float | None,
) -> Workload:
    models = models or ["resnet50"]
    for name in models:
        architectures.program(name)
    tenants = [f"{models[i % len(models)]}/{i // len(models)}" for i in range(num_tenants)]
    rows = range(1, max_rows + 1)
    slo_us = None if slo_ms is None else round(slo_ms * 1e3)
    if num_requests is not None:
        return workloads.closed_loop(tenants, num_requests, rows, seed, models=models, slo_us=slo_us)
    rates = [(tenant, rate_per_s) for tenant in tenants]
    return workloads.poisson(rates, seconds, rows, seed, models=models, slo_us=slo_us)


def _load(path: Path) -> Workload:
    try:
        return Workload.from_json(path.read_text(encoding="utf-8"))
    except OptionError as error:
        raise OptionError(f"{path} is no workload", f"{error.what}; {error.facts}", "see Workload.to_json()") from error
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as a workload", str(error), "see Workload.to_json()") from error


def _refuse_generator_options(context: typer.Context, path: Path) -> None:
    """A file says all of this itself; an option that does nothing would mislead."""
    for option in GENERATED.split(", "):
        source = context.get_parameter_source(option.replace("-", "_"))
        if source is not None and source.name == "COMMANDLINE":
            raise OptionError(f"--{option} has no effect on {path}", "the file has every arrival", "leave one out")


def _print(reports: list[Report]) -> None:
    console = Console()
    if len(reports) == 1:
        console.print(str(reports[0]), highlight=False, markup=False, soft_wrap=True)
        return
    first = reports[0]
    console.print(
        f"modelled: {first.device.name}, {first.device.num_units} units, {len(first.tenants)} tenants, "
        f"seed {first.seed}",
        highlight=False,
        soft_wrap=True,
    )
    Console(width=max(console.width, TABLE_WIDTH)).print(_table(reports))
    for report in reports:
        if report.first_error is not None:
            console.print(f"{report.policy}: {report.first_error}", highlight=False, markup=False)


def _table(reports: list[Report]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for heading in ("req/s", "in time", "p50 ms", "p99 ms", "busy", "mJ/req", "fair"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(
            report.policy,
            f"{report.requests_per_s:.0f}",
            f"{report.goodput_per_s:.0f}",
            f"{report.p50_us / 1e3:.2f}",
            f"{report.p99_us / 1e3:.2f}",
            f"{report.utilisation:.1%}",
            f"{report.joules_per_request * 1e3:.1f}",
            f"{report.fairness:.3f}",
        )
    return table
