"""Study: KRISP's evaluation (Chow et al., HPCA 2023), workers of one model on an MI50 under every way of sharing it.

No torch. A worker is a tenant that sends its next request when the last one ends. All figures are relative to one
worker that has the device to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from spacetime._version import __version__
from spacetime.device import Device
from spacetime.scheduler.registry import policy_names
from spacetime.scheduler.tables import TOLERANCE
from spacetime.sim import architectures, devices
from spacetime.sim.oracle import OracleCosts
from spacetime.sim.report import Report
from spacetime.sim.simulate import simulate
from spacetime.sim.studies import krisp_assumptions
from spacetime.sim.studies.krisp_assumptions import ASSUMPTIONS, WITHOUT_LAUNCHES, Found
from spacetime.sim.studies.study import Cell, Claim, Column, Progress, Study, Table, geomean
from spacetime.workload import Arrival, Resident, Workload, closed_loop

MODELS = ("albert", "alexnet", "densenet201", "resnet152", "resnext101", "shufflenet", "squeezenet", "vgg19")
QUICK_MODELS = ("alexnet", "squeezenet")
WORKERS = (1, 2, 4)
ROWS = (1, 32)  # per request
REQUESTS = 100  # of all workers together
QUICK_REQUESTS = 20
ASSUMED_REQUESTS = 40  # the same where the assumptions are others
NOISE = 0.05  # standard deviation of log(duration): else workers of one model run in lockstep for ever
DEVICE = "mi50"
BASELINES = ("time_slice", "streams", "static", "gslice")
FAMILIES = ("krisp", "space_time")  # and all of these
SHARED = "space_time, one tenant"  # the workers' requests, with the weights that they have in common

PAPER = "KRISP, 2023"
OVER_ISOLATED = 2.0
OVER_STREAMS = 3.5
OVER_STATIC = 1.22  # at 4 workers
ENERGY_OVER_ISOLATED = 0.67  # per inference; 0.71 in other configurations

Key = tuple[str, str, int, int]  # policy, model, workers, rows
Reports = Mapping[Key, Report]
Figure = Callable[[Reports, Key], float]


def study(*, quick: bool, progress: Progress) -> Study:
    """KRISP's evaluation: 1, 2 and 4 workers of eight models on an MI50, right-sized by kernel, by model, or not."""
    models, rows = QUICK_MODELS if quick else MODELS, ROWS
    policies = (*BASELINES, *(name for name in policy_names() if name.startswith(FAMILIES)), SHARED)
    keys: list[Key] = [(p, m, w, r) for p in policies for m in models for w in WORKERS for r in rows]
    num_requests = QUICK_REQUESTS if quick else REQUESTS
    reports, in_step = {}, {}
    in_step_keys = [key for key in keys if key[2] == WORKERS[-1] or (key[0], key[2]) == ("time_slice", 1)]
    total = len(keys) + len(in_step_keys) + len(ASSUMPTIONS)
    for done, key in enumerate(keys):
        progress(done, total)
        reports[key] = play(*key, noise=NOISE, num_requests=num_requests)
    for done, key in enumerate(in_step_keys, start=len(keys)):
        progress(done, total)
        in_step[key] = play(*key, noise=0.0, num_requests=num_requests)
    steps = iter(range(len(keys) + len(in_step_keys), total))
    begin = lambda: progress(next(steps), total)  # noqa: E731
    assumed = krisp_assumptions.play(devices.find(DEVICE), models, WORKERS[-1], rows, partial(_rate, quick), begin)
    shown = [policy for policy in policies if not policy.endswith(("_packed", "_distributed"))]
    return Study(
        name="krisp",
        title="KRISP's evaluation",
        device=f"{DEVICE} (data sheet)",
        version=__version__,
        is_quick=quick,
        question="How much more does an MI50 do when several workers of one model share it, and how much of that is "
        "due to giving every kernel the units that it needs and no more?",
        method=_method(rows),
        claims=tuple(_claims(reports, models, rows)),
        tables=(
            _throughput_table(reports, policies, models, rows),
            *(_model_table("throughput", reports, shown, models, each, _gain, ".2f") for each in rows),
            *(_model_table("p99 of latency", reports, shown, models, each, _tail, ".1f") for each in rows),
            _knee_table(models, rows),
            _lockstep_table(reports, in_step, policies, models, rows),
            krisp_assumptions.table(assumed, WORKERS[-1], (OVER_ISOLATED, OVER_STATIC, OVER_STREAMS)),
        ),
        notes=_notes(reports, in_step, policies, models, rows, assumed),
    )


def play(
    policy: str,
    model: str,
    num_workers: int,
    num_rows: int,
    *,
    noise: float,
    num_requests: int,
    device: str | Device = DEVICE,
) -> Report:
    """Every worker's requests, one after another."""
    if policy == SHARED:
        arrivals = (Arrival(0, "all", num_rows),) * num_requests
        workload, policy = Workload(arrivals, (Resident("all", model),), outstanding=num_workers), "space_time"
    else:
        workers = [f"worker {index}" for index in range(num_workers)]
        workload = closed_loop(workers, num_requests // num_workers, (num_rows,), models=[model])
    report = simulate(workload, policy, device, noise=noise, oracle_costs=True)
    assert report.first_error is None and report.completed == num_requests
    return report


def _isolated(reports: Reports, key: Key) -> Report:
    _, model, _, rows = key
    return reports["time_slice", model, 1, rows]


def _gain(reports: Reports, key: Key) -> float:
    return reports[key].requests_per_s / _isolated(reports, key).requests_per_s


def _tail(reports: Reports, key: Key) -> float:
    return reports[key].p99_us / _isolated(reports, key).p99_us


def _energy(reports: Reports, key: Key) -> float:
    return reports[key].joules_per_request / _isolated(reports, key).joules_per_request


def _mean_gain(reports: Reports, policy: str, models: Sequence[str], workers: int, rows: int) -> float:
    return geomean(_gain(reports, (policy, model, workers, rows)) for model in models)


def _rate(quick: bool, policy: str, model: str, workers: int, rows: int, device: Device) -> float:
    num_requests = QUICK_REQUESTS if quick else ASSUMED_REQUESTS
    report = play(policy, model, workers, rows, noise=NOISE, num_requests=num_requests, device=device)
    return report.requests_per_s


def _claims(reports: Reports, models: Sequence[str], all_rows: Sequence[int]) -> list[Claim]:
    claims = []
    most = WORKERS[-1]
    for rows in all_rows:
        for policy in ("krisp", "krisp_overlap"):
            gain = _mean_gain(reports, policy, models, most, rows)
            energy = geomean(_energy(reports, (policy, model, most, rows)) for model in models)
            over_static = gain / _mean_gain(reports, "static", models, most, rows)
            over_streams = gain / _mean_gain(reports, "streams", models, most, rows)
            where = f"`{policy}`, {most} workers, {_rows_words(rows)}:"
            claims += [
                Claim(f"{where} throughput over one worker alone", OVER_ISOLATED, gain, PAPER),
                Claim(f"{where} throughput over `static`", OVER_STATIC, over_static, PAPER),
                Claim(f"{where} throughput over `streams`", OVER_STREAMS, over_streams, PAPER),
                Claim(f"{where} energy per request over one worker alone", ENERGY_OVER_ISOLATED, energy, PAPER),
            ]
    return claims


def _throughput_table(
    reports: Reports, policies: Sequence[str], models: Sequence[str], all_rows: Sequence[int]
) -> Table:
    pairs = [(workers, rows) for rows in all_rows for workers in WORKERS]
    columns = [Column("policy")]
    columns += [Column(f"{workers} x {_rows_words(rows)}", ".2f") for workers, rows in pairs]
    columns += [Column(f"p99, {WORKERS[-1]} x {_rows_words(rows)}", ".1f") for rows in all_rows]
    table: list[tuple[Cell, ...]] = []
    for policy in policies:
        row: list[Cell] = [_policy_words(policy)]
        row += [_mean_gain(reports, policy, models, workers, rows) for workers, rows in pairs]
        row += [geomean(_tail(reports, (policy, m, WORKERS[-1], rows)) for m in models) for rows in all_rows]
        table.append((*row,))
    title = "Throughput, and p99 of latency, over one worker alone: geometric mean over models, by workers and rows"
    return Table(title, (*columns,), (*table,))


def _model_table(
    what: str,
    reports: Reports,
    policies: Sequence[str],
    models: Sequence[str],
    rows: int,
    figure: Figure,
    number_format: str,
) -> Table:
    columns = (Column("policy"), *(Column(model, number_format) for model in models))
    table: list[tuple[Cell, ...]] = [
        (_policy_words(p), *(figure(reports, (p, model, WORKERS[-1], rows)) for model in models)) for p in policies
    ]
    return Table(f"{WORKERS[-1]} workers, {_rows_words(rows)}: {what} over one worker alone", columns, (*table,))


def _knee_table(models: Sequence[str], all_rows: Sequence[int]) -> Table:
    """What the model of MI50 thinks is needed: of a kernel, the mean over the time that kernels take."""
    columns = [Column("model"), Column("kernels")]
    for rows in all_rows:
        columns += [Column(f"{_rows_words(rows)}: whole model"), Column("its kernels on average", ".1f")]
    costs, device = OracleCosts(), devices.find(DEVICE)
    table: list[tuple[Cell, ...]] = []
    for model in models:
        program = architectures.program(model)
        costs.register(model, program, device)
        row: list[Cell] = [model, len(program.kernels)]
        for rows in all_rows:
            times = costs.kernel_times(model, tenants=1, rows=rows, fused=False)
            row += [times.knee(), float(np.average(times.knees(), weights=times.us[:, -1]))]
        table.append((*row,))
    title = f"Units, of {device.num_units}, within {TOLERANCE:.0%} of the best latency"
    return Table(title, (*columns,), (*table,))


def _lockstep_table(
    reports: Reports, in_step: Reports, policies: Sequence[str], models: Sequence[str], all_rows: Sequence[int]
) -> Table:
    columns = [Column("policy")]
    for rows in all_rows:
        columns += [Column(f"{_rows_words(rows)}: drifting", ".2f"), Column(f"{_rows_words(rows)}: in step", ".2f")]
    table: list[tuple[Cell, ...]] = []
    for policy in policies:
        row: list[Cell] = [_policy_words(policy)]
        for rows in all_rows:
            row += [_mean_gain(found, policy, models, WORKERS[-1], rows) for found in (reports, in_step)]
        table.append((*row,))
    title = f"{WORKERS[-1]} workers that drift apart ({NOISE:.0%} noise), or all run the same kernel at the same time"
    return Table(f"{title}: throughput over one worker alone", (*columns,), (*table,))


def _method(all_rows: Sequence[int]) -> tuple[str, ...]:
    shown_rows, device = " or ".join(_rows_words(rows) for rows in all_rows), devices.find(DEVICE)
    tflops, gb_per_s = device.flops_per_unit_us * device.num_units / 1e6, device.bytes_per_us / 1e3
    return (
        f"{_list_words(WORKERS)} workers of one model, each a tenant with one request outstanding at any time, "
        f"{shown_rows} per request, {REQUESTS} requests in all ({QUICK_REQUESTS} in a quick look). One worker alone is "
        "`time_slice` with one worker.",
        "The paper's baselines by their names here: MPS default is `streams`, static equal is `static`, model-wise "
        "right-sizing is `gslice`, KRISP isolated is `krisp`, KRISP overlapping is `krisp_overlap`; `_packed` and "
        "`_distributed` place masks otherwise than its conserved way. The policies are those that serve real devices.",
        f"The device is data: {device.num_units} units in {device.num_groups} groups, {tflops:.1f} TFLOP/s and "
        f"{gb_per_s:.0f} GB/s. Kernels of the KRISP policies float: the device places each when it starts, as KRISP's "
        "command processor does, at no cost. The cost model knows every kernel's latency on every number of units, as "
        "from KRISP's profile.",
        "Published: Chow et al., KRISP: Enabling Kernel-wise Right-sizing for Spatial Partitioned GPU Inference "
        "Servers, HPCA 2023. The rows of its requests are not known here, so two sizes are played.",
        f"Durations of requests vary by {NOISE:.0%} (standard deviation of their logarithm, seed 0). Without that, "
        "workers of one model run the same kernel at the same time for ever; the last table shows what that does.",
        f"{SHARED}: the same requests outstanding, but of one tenant. Workers of one model share its weights then, and "
        "what waits together is one batch. The other columns treat every worker's weights as its own.",
    )


def _notes(
    reports: Reports,
    in_step: Reports,
    policies: Sequence[str],
    models: Sequence[str],
    all_rows: Sequence[int],
    assumed: Sequence[Found],
) -> tuple[str, ...]:
    most, few, many = WORKERS[-1], all_rows[0], all_rows[-1]
    gains = {(p, rows): _mean_gain(reports, p, models, most, rows) for p in policies for rows in all_rows}
    tails = {model: _tail(reports, ("krisp", model, most, many)) for model in models}
    worst = max(tails, key=lambda model: tails[model])
    device = devices.find(DEVICE)
    floor, num_units = 1 / (1 + device.interference) / (1 + device.cache_penalty), device.num_units
    without_launches = next(each.krisp for each in assumed if each.assumption == WITHOUT_LAUNCHES)
    in_step_streams, in_step_krisp = (_mean_gain(in_step, p, models, most, few) for p in ("streams", "krisp_overlap"))
    return (
        f"Over `streams` there is no gain: {gains['krisp_overlap', few]:.2f} against {gains['streams', few]:.2f} for "
        f"{most} workers with {_rows_words(few)}. The published figures taken together say that MPS default did "
        f"{OVER_ISOLATED / OVER_STREAMS:.2f} of what one worker does alone. With what is assumed here it cannot: "
        "kernels that share units share them perfectly, whoever has room works, and others' blocks cost at most "
        f"{device.interference:.0%} in time and {device.cache_penalty:.0%} in traffic, so that `streams` does "
        f"{floor:.2f} at worst. (Space-Time, 2018, saw its slowest tenant 25% behind the fastest under MPS.) Hardware "
        f"queues are bounded, {device.hardware_queues} of them, but {most} workers need no more than {most}.",
        "It is one assumption that decides: what it costs a kernel that others keep the same units busy, besides the "
        f"time that they take (`Device.interference`, an estimate: {device.interference:g}). {_interference(assumed)} "
        "So much would have to come from what the model leaves out: blocks queue behind those of an earlier kernel, "
        "and kernels evict each other from first-level caches and local memory. Which value MI50 has only MI50 "
        "can say. Policies that isolate do not depend on it; `streams` is an upper bound here.",
        f"Over one worker alone, {_rows_words(few)}: {gains['krisp_overlap', few]:.2f} overlapping and "
        f"{gains['krisp', few]:.2f} isolated, published {OVER_ISOLATED:.2f}. While one worker launches, others work: "
        f"where launches take no time, {without_launches:.2f} is left of the latter. That the figures agree is thus "
        "not owed to right-sizing alone, and a launch's duration is an estimate.",
        f"With {_rows_words(many)} that becomes {gains['krisp_overlap', many]:.2f} and {gains['krisp', many]:.2f}. The "
        "model thinks that kernels of such batches need most of the device (see the table of units), because it gives "
        "every product the tile that does best at the data sheet's peak. If the libraries' kernels on MI50 stop "
        "gaining from units much earlier, as KRISP's profiles say, there is more to share than the model knows: see "
        "what larger tiles do in the table of assumptions.",
        f"Over `static` the gain is {gains['krisp_overlap', few] / gains['static', few]:.2f} and "
        f"{gains['krisp', few] / gains['static', few]:.2f} with {_rows_words(few)}, published {OVER_STATIC:.2f}, and "
        f"smaller with larger batches for the same reason. {max(each.over_static for each in assumed):.2f} is the most "
        "that any of the other assumptions gives. "
        f"`gslice` does the same as `static`: a model as a whole needs more than the {num_units // most} units that "
        "are its share, so that right-sizing by model has nothing to give back.",
        f"`krisp` isolates: a kernel that starts while others hold almost everything gets the units that are left, but "
        "no fewer than an equal share of the device among the lanes, or its knee: it waits for those. Its longest tail "
        f"is {tails[worst]:.1f} times the p99 of one worker alone, in {worst} with {_rows_words(many)}. (Without that "
        "bound, down to one unit, the same study had tails of 26 times.) The bound is ours: what KRISP's allocator "
        "does with so little left is not known here.",
        "Packed, distributed and conserved masks do the same when isolated: the model has nothing that depends on the "
        "shader engine, so only how many units are free counts.",
        f"`space_time` does as `static` does ({gains['space_time', few]:.2f} with {_rows_words(few)}), and less than "
        "`krisp_overlap`: a lane keeps its units from its first kernel to its last, also through kernels that need "
        f"fewer. `space_time_floating` gives them back between kernels: {gains['space_time_floating', few]:.2f}. With "
        f"the workers' weights in common `space_time` batches: {gains[SHARED, few]:.2f}.",
        f"In step, `streams` does {in_step_streams:.2f} and `krisp_overlap` {in_step_krisp:.2f} with "
        f"{_rows_words(few)}: launches then coincide, and nobody works meanwhile.",
        "Energy is a proxy: idle power always, and the rest in proportion to the units at work. It falls by as much as "
        "the device idles less.",
    )


def _interference(assumed: Sequence[Found]) -> str:
    """`krisp` over `streams` by what neighbours cost."""
    parts = []
    for rows in dict.fromkeys(each.rows for each in assumed):
        gains = [
            f"{each.over_streams:.2f} with {each.assumption.interference:g}"
            for each in assumed
            if each.rows == rows and each.assumption.interference is not None
        ]
        parts.append(f"{_rows_words(rows)}: {_list_words(gains)}")
    return f"`krisp` over `streams` becomes, {'; '.join(parts)}; published {OVER_STREAMS:.2f}."


def _rows_words(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


def _list_words(numbers: Sequence[object]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _policy_words(policy: str) -> str:
    return policy if policy == SHARED else f"`{policy}`"
