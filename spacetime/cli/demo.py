"""`spacetime demo`: the same mixed traffic under several policies, side by side in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spacetime import zoo
from spacetime.backends import make_backend
from spacetime.cli import traffic
from spacetime.cli.output import POLICIES_HELP, TRACE_HELP, Show, check_writable, progress_bar, write_trace
from spacetime.device import Device
from spacetime.scheduler.registry import get_policy
from spacetime.values import Value

BASELINE = "time_slice"  # as if the models were called one after another
POLICIES = (BASELINE, "streams", "space_time")


@dataclass(frozen=True, slots=True)
class DemoReport(Value):
    """Everything the table shows, with what it was measured on."""

    device: Device
    torch_version: str
    architectures: tuple[str, ...]
    num_tenants: int
    requests_per_tenant: int
    seed: int
    runs: tuple[traffic.PolicyRun, ...]


def demo(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:N or hip:N.")] = "auto",
    tenants: Annotated[int, typer.Option(min=1, help="Models; four architectures take turns.")] = 16,
    seconds: Annotated[float, typer.Option(min=0, help="Traffic per policy, about, warm-up included.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and request sizes.")] = 0,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Only these; repeat the option for several: {POLICIES_HELP}.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help=TRACE_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Serve the same mixed traffic under several policies: throughput, latency, and whether every result is right."""
    policies = tuple(dict.fromkeys(policy or POLICIES))
    for name in policies:
        get_policy(name)  # a wrong name is an error before anything is built
    with progress_bar() as progress:
        report = _measure(device, tenants, seconds, seed, policies, trace, progress)
    if as_json:
        print(report.to_json())
    else:
        _print(report)
    if any(run.num_wrong or run.load.errors for run in report.runs):
        raise typer.Exit(1)


def _measure(
    device: str,
    num_tenants: int,
    seconds: float,
    seed: int,
    policies: tuple[str, ...],
    trace_path: Path | None,
    progress: Show,
) -> DemoReport:
    backend = make_backend(device)
    described = backend.device
    backend.close()
    check_writable("trace", trace_path)
    progress("building models", 0, num_tenants)
    models, warm_up, measured = traffic.prepare(num_tenants, seconds, seed)
    runs = []
    for name in policies:
        run, trace = traffic.run_policy(name, device, models, warm_up, measured, progress)
        runs.append(run)
    if trace_path is not None:
        write_trace(trace, trace_path)
    return DemoReport(
        device=described,
        torch_version=torch.__version__,
        architectures=tuple(dict.fromkeys(model.architecture for model in models)),
        num_tenants=num_tenants,
        requests_per_tenant=len(measured.arrivals) // num_tenants,
        seed=seed,
        runs=tuple(runs),
    )


def _print(report: DemoReport) -> None:
    console = Console()
    models = ", ".join(f"{name} ({zoo.ZOO[name].note})" for name in report.architectures)
    console.print(
        f"device {report.device.name}, {report.device.num_units} units · torch {report.torch_version}\n"
        f"{report.num_tenants} tenants, each with its own weights: {models}\n"
        f"each keeps one request of {traffic.ROWS[0]} to {traffic.ROWS[-1]} rows outstanding, "
        f"{report.requests_per_tenant} requests per tenant and policy",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(report))
    for run in report.runs:
        for line in filter(None, (run.first_problem, *run.load.errors[:1])):
            console.print(f"{run.policy}: {line}", highlight=False, markup=False)


def _table(report: DemoReport) -> Table:
    baseline = next((run for run in report.runs if run.policy == BASELINE), report.runs[0])
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for heading in ("req/s", "rows/s", "p50 ms", "p99 ms", f"vs {baseline.policy}", "results"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in report.runs:
        load = run.load
        ratio = load.rows_per_s / baseline.load.rows_per_s if baseline.load.num_rows else 0.0
        table.add_row(
            run.policy,
            f"{load.requests_per_s:.0f}",
            f"{load.rows_per_s:.0f}",
            f"{load.latency_us(0.5) / 1e3:.1f}",
            f"{load.latency_us(0.99) / 1e3:.1f}",
            f"{ratio:.2f} x",
            _verdict(run),
        )
    return table


def _verdict(run: traffic.PolicyRun) -> str:
    """Of every request: how it compares with the plain module's answer."""
    if run.num_wrong or run.load.errors:
        return f"{run.num_wrong} wrong, {len(run.load.errors)} failed"
    return "all right"
