"""Stage on profiles: the zoo's kernels over partitions of this device; the files stay under $OUT."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

import spacetime as st
from bench.device.findings import INFO, MISSING, Notes
from bench.device.gpu import time_us
from bench.provenance import REPOSITORY
from spacetime import zoo
from spacetime.profiler.store import slug

MODELS = ("mlp", "bert", "resnet18")
BUDGET_S = 0.1  # for each kernel
STAGE_S = 50.0  # after which no other model is begun


def profile(notes: Notes) -> None:
    """Every kernel has a knee on real partitions, and together the kernels are the model's own graph."""
    folder = Path(os.environ.get("OUT", REPOSITORY / "build" / "device")) / "profiles"
    begin_s = time.monotonic()
    for name in MODELS:
        if time.monotonic() - begin_s > STAGE_S:
            notes.note(name, MISSING, f"no time: {STAGE_S:.0f} s are over")
            continue
        with notes.trying(name):
            _profile(notes, name, folder)


def _profile(notes: Notes, name: str, folder: Path) -> None:
    begin_s = time.monotonic()
    module, example = zoo.build(name), zoo.example(name)
    found = st.profile(st.capture(module, example), "cuda:0", store=folder, budget_s=BUDGET_S)
    seconds = time.monotonic() - begin_s
    found.save(folder / slug(found.device) / f"{name}-{found.signature[:8]}.profile.json")
    unconfined = found.environment.unconfined
    sizes = [point.units for point in found.total_points]
    notes.check(
        f"{name}: kernels were measured on partitions",
        not unconfined and len(sizes) >= 4,
        unconfined or f"{len(found.measurements)} measurements on {sizes} units in {seconds:.1f} s",
        kernels=len({layer.key for layer in found.layers}),
        seconds=round(seconds, 1),
    )
    disturbed = sum(bool(each.num_disturbed) for each in found.measurements)
    notes.note(
        f"{name}: knees",
        INFO,
        f"whole model {found.total.units} of {found.total.best_units} units; {disturbed} measurements left samples out",
        knees={layer.name: layer.knee.units for layer in found.layers},
        confidence={layer.name: round(layer.knee.confidence, 2) for layer in found.layers},
        bounds={layer.name: layer.bound for layer in found.layers},
        total_us={point.units: round(point.median_us, 1) for point in found.total_points},
    )
    graph_us = _graph_us(module, example)
    predicted_us = found.predict_us()
    notes.note(
        f"{name}: predicted",
        INFO,
        f"{predicted_us:.1f} us from its kernels, {graph_us:.1f} us as a CUDA graph, x{predicted_us / graph_us:.2f}",
        predicted_us=round(predicted_us, 1),
        graph_us=round(graph_us, 1),
    )


@torch.no_grad()
def _graph_us(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> float:
    """One row of the model as a CUDA graph on the whole device: what a profile of kernels should add up to."""
    module, example = module.cuda(), tuple(leaf[:1].cuda() for leaf in example)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(*example)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*example)
    return time_us(graph.replay, inner=10)
