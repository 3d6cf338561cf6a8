"""Case `profile_accuracy`: what a profile takes, whether a second one agrees, and whether its kernels add up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch

import spacetime as st
from bench.cases import Scale
from bench.results import Figure, Measurement
from bench.timing import Action
from spacetime import Program, zoo
from spacetime.backends.threads import on_passing_thread, release_team
from spacetime.profiler.measure import MIN_CLEAN, Effort, Taken, time_on_sizes
from spacetime.profiler.site import CpuSite

BUDGET_S = 0.5  # per kernel, in each of the two runs
WHOLE_BUDGET_S = 4.0
TIMED_MODEL = "resnet18"
CLOSE = 0.15
NUM_COMMANDS = 5

METHOD = (
    f"one row; every kernel timed in whole runs of the captured program, {BUDGET_S} s per kernel at most, store empty; "
)
COLD = Figure(
    "profile_accuracy", "profile with an empty store", "s", METHOD + "all sizes; capture not counted", "<= 60"
)
KNOWN = Figure("profile_accuracy", "profile when all is known", "s", "the same again, from its store", goal="< 2")
COMMAND = Figure(
    "profile_accuracy",
    "the command when all is known",
    "s",
    "spacetime-profile MODEL.pt2 in a process of its own, from its start to its end; page and profile written",
    goal="< 2",
)
KNEES = Figure("profile_accuracy", "equal knees in two runs", "share of layers", METHOD + "twice", goal=">= 0.9")
RATIO = Figure(
    "profile_accuracy",
    "predicted over measured latency",
    "ratio",
    METHOD + "around them the module's own code, timed on a batch without rows; an LSTM or a GRU is one operation; "
    "against the plain module, timed by itself on the same cores, sizes in turns; samples that other work "
    "interrupted left out on both sides",
)
SHARE = Figure("profile_accuracy", f"models within {CLOSE:.0%}", "share of models", RATIO.method, goal=">= 0.8")


def run(scale: Scale) -> Iterator[Measurement]:
    agreements: list[float] = []
    close: dict[int, list[bool]] = {}
    for model in scale.models:
        module, args = zoo.build(model), zoo.example(model, rows=1)
        program = st.capture(module, zoo.example(model))
        with tempfile.TemporaryDirectory() as folder:
            first, cold_s = _profile(program, Path(folder))
            _, known_s = _profile(program, Path(folder))
            command_s = _command_s(model, Path(folder)) if model == TIMED_MODEL else []
        if model == TIMED_MODEL:
            yield COLD.of(model, [cold_s])
            yield KNOWN.of(model, [known_s])
            yield COMMAND.of(model, command_s)
        measured = whole_us(partial(module, *args))
        with tempfile.TemporaryDirectory() as folder:
            second, _ = _profile(program, Path(folder))
        agreements.append(agreement(first, second))
        yield KNEES.of(model, [agreements[-1]])
        for units, taken in measured.items():
            subject = f"{model}, {units} cores"
            if len(taken.clean_us) < MIN_CLEAN:
                yield RATIO.unavailable(subject, f"all but {len(taken.clean_us)} of {taken.num_taken} were interrupted")
                continue
            us = median(taken.clean_us)
            ratios = [found.predict_us(units) / us for found in (first, second)]
            close.setdefault(units, []).append(abs(median(ratios) - 1) <= CLOSE)
            yield RATIO.of(
                subject, ratios, f"plain {us:.0f} us, {len(taken.clean_us)} of {taken.num_taken} undisturbed"
            )
    yield KNEES.of("mean", [sum(agreements) / len(agreements)])
    for units, each in close.items():
        yield SHARE.of(f"{units} cores", [sum(each) / len(each)], f"{len(each)} models")


def agreement(first: st.Profile, second: st.Profile) -> float:
    pairs = list(zip(first.layers, second.layers, strict=True))
    return sum(one.knee.units == other.knee.units for one, other in pairs) / len(pairs)


def whole_us(call: Action) -> Mapping[int, Taken]:
    """A plain module on every number of cores."""

    def measure() -> Mapping[int, Taken]:
        with CpuSite() as site:
            effort = Effort(WHOLE_BUDGET_S)
            return time_on_sizes(site, call, site.sizes, effort, cold=False, stopped=lambda: False)

    release_team()
    return on_passing_thread(measure)


def _command_s(model: str, folder: Path) -> list[float]:
    """The first one has the program to capture, and keeps it."""
    path, example = folder / f"{model}.pt2", zoo.example(model)
    rows = torch.export.Dim("rows", min=1, max=64)
    exported = torch.export.export(zoo.build(model), example, dynamic_shapes=tuple({0: rows} for _ in example))
    torch.export.save(exported, path)
    code = "from spacetime.cli.profile import main; main()"
    command = [sys.executable, "-c", code, str(path), "--store", str(folder), "--budget", str(BUDGET_S)]
    found = []
    for _ in range(1 + NUM_COMMANDS):
        start_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start_s)
    return found[1:]


def _profile(program: Program, folder: Path) -> tuple[st.Profile, float]:
    start_s = time.perf_counter()
    found = st.profile(program, store=folder, budget_s=BUDGET_S)
    return found, time.perf_counter() - start_s
