"""Case `simulator`: kernel events per second of the engine, requests per second of whole simulations. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from bench.cases import Scale
from bench.results import Figure, Measurement
from spacetime import workload
from spacetime.plan import Placement
from spacetime.sim.devices import find
from spacetime.sim.engine import FLOATS, Engine, Script
from spacetime.sim.simulate import Simulation
from spacetime.sim.state import STEP

NUM_KERNELS = 200  # per lane
LANES = ((1, "h200"), (8, "h200"), (16, "h200"), (8, "mi50"))
POLICIES = ("time_slice", "streams", "krisp", "space_time")
NUM_TENANTS = 16
REQUESTS_PER_S = 1000  # of all tenants

EVENTS = Figure(
    "simulator",
    "kernels simulated per second",
    "1/s",
    f"lanes of {NUM_KERNELS} kernels with random work and traffic, each followed by the next; compiled before",
    goal=">= 1000000",
)
REQUESTS = Figure(
    "simulator",
    "requests simulated per second",
    "1/s",
    f"{NUM_TENANTS} tenants (resnet50, bert, mobilenet_v2, mlp), {REQUESTS_PER_S} requests/s in all, Poisson, h200",
)


def run(scale: Scale) -> Iterator[Measurement]:
    num_events = 1000 * scale.num_calls
    for form in ("partitions", "whole device", "floating"):
        for num_lanes, device in LANES:
            rates = [events_per_s(device, num_lanes, form, num_events) for _ in range(scale.num_blocks)]
            yield EVENTS.of(f"{num_lanes} lanes, {form}, {device}", rates[1:])
    for policy in POLICIES:
        yield REQUESTS.of(policy, [requests_per_s(policy, scale.num_calls / 100) for _ in range(3)][1:])


def events_per_s(device_name: str, num_lanes: int, form: str, num_events: int) -> float:
    device = find(device_name)
    engine, rng = Engine(device), np.random.default_rng(0)
    scripts = [_script(engine, device.num_atoms, num_lanes, index, form, rng) for index in range(num_lanes)]
    running = {engine.start(script): script for script in scripts}
    start_s = perf_counter()
    while engine.num_kernels < num_events:
        for ended in engine.advance():
            script = running.pop(ended)
            running[engine.start(script)] = script
    return engine.num_kernels / (perf_counter() - start_s)


def _script(engine: Engine, num_atoms: int, num_lanes: int, index: int, form: str, rng: np.random.Generator) -> Script:
    """Arithmetic of 50 atom-us to 500 in each kernel, and now and then more traffic than the memory can move."""
    steps = np.zeros(NUM_KERNELS, STEP)
    sizes = np.arange(1, num_atoms + 1)
    compute_us = rng.uniform(50, 500, NUM_KERNELS)[:, None] / sizes
    steps["serial_us"], steps["traffic_bytes"] = rng.uniform(1, 5, NUM_KERNELS), rng.uniform(0, 2e7, NUM_KERNELS)
    if form == "floating":
        steps["atoms"] = rng.integers(1, num_atoms // 2, NUM_KERNELS)
        steps["row"] = engine.table(compute_us, np.tile(sizes, (NUM_KERNELS, 1))) + np.arange(NUM_KERNELS)
        return Script(steps, FLOATS, Placement("conserved", 0))
    width = num_atoms if form == "whole device" else num_atoms // num_lanes
    region = engine.region(((1 << width) - 1) << (0 if width == num_atoms else width * index))
    steps["region"], steps["atoms"], steps["busy_atoms"] = region, width, width
    steps["compute_us"] = compute_us[:, width - 1]
    return Script(steps, region)


def requests_per_s(policy: str, seconds: float) -> float:
    """Requests of a simulated time, by the time that simulating them took."""
    rates = [(f"tenant {index}", REQUESTS_PER_S / NUM_TENANTS) for index in range(NUM_TENANTS)]
    played = workload.poisson(rates, seconds, models=("resnet50", "bert", "mobilenet_v2", "mlp"), slo_us=20_000)
    simulation = Simulation(played, policy, "h200")
    start_s = perf_counter()
    simulation.run()
    return len(played.arrivals) / (perf_counter() - start_s)
