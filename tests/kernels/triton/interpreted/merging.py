"""Merged lanes whose kernels are interpreted, eagerly and in graphs of the fake GPU. Only test_merged.py uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.backends.cuda.anymerged import MergedGraph, MergedMix, MergedRecipe, capture_merged
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.capture import cohort as cohorts
from spacetime.capture.on_gpu import on_gpu
from spacetime.device import Partition
from spacetime.kernels.bound import owners
from spacetime.kernels.bound.together import BoundTogetherLinear
from spacetime.kernels.bound.together_conv import BoundTogetherConv
from spacetime.kernels.triton.launch import Launch
from spacetime.merging.align import align
from spacetime.merging.gains import Launches
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import Outcome
from tests.backends.cuda.fake_gpu import FakeGpu
from tests.capture.merging import Request, run, trouble

Inputs = tuple[Tensor, ...]
PLAIN_RUN = Launch.run
WHOLE = (Segment(Partition(1, 132, 132)),)

_launches: dict[int, Launch] = {}
_numbers = count()
_interpreter = threading.Lock()  # it knows one launch at a time
_capturing: set[int] = set()  # threads


@torch.library.custom_op("spacetime_tests::launch", mutates_args={"writes"})
def _launched(number: int, reads: list[Tensor], writes: list[Tensor]) -> None:
    """A launch as an operation of torch's, which the fake GPU sees and replays.

    The fake runs what is captured, a real one does not: then there is nothing yet in tables of addresses.
    """
    launch = _launches[number]
    if not (_is_capturing() and launch.kernel.startswith(("grouped", "stacked"))):
        with _interpreter:
            PLAIN_RUN(launch)


def _is_capturing() -> bool:
    return threading.get_ident() in _capturing


def seen(launch: Launch) -> None:
    number = next(_numbers)
    _launches[number] = launch
    given = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    writes = [given.pop(name) for name in ("y", "faults") if name in given]
    storages = {tensor.untyped_storage()._cdata for tensor in writes}
    reads = [tensor for tensor in given.values() if tensor.untyped_storage()._cdata not in storages]
    _launched(number, reads, writes)


@contextmanager
def on_fake_gpu() -> Iterator[None]:
    """Programs in the form for GPUs; launches that a fake GPU sees; captures that are known to be such."""
    fuse, capture = cohorts.fuse, FakeGpu.capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohorts, "fuse", lambda captured: on_gpu(fuse(captured), captured.proof))
        patch.setattr(Launch, "run", seen)

        def noted(self: FakeGpu, stream: Any, function: Callable[[], None]) -> Any:
            _capturing.add(threading.get_ident())
            try:
                return capture(self, stream, function)
            finally:
                _capturing.clear()  # there is one at a time

        patch.setattr(FakeGpu, "capture", noted)
        patch.setattr(owners, "_is_capturing", _is_capturing)
        yield


def merged(*members: CohortExecutable, grouped: bool = False) -> MergedExecutable:
    by_signature = {member.cohort.program.signature: member for member in members}
    program = align([member.cohort.program for member in members], Launches(grouped=grouped))
    return MergedExecutable(program, [by_signature[each.signature] for each in program.programs])


def commons(executable: MergedExecutable) -> list[BoundTogetherLinear | BoundTogetherConv]:
    found = executable.common_kernels
    assert all(isinstance(kernel, BoundTogetherLinear | BoundTogetherConv) for kernel in found)
    return list(found)  # type: ignore[arg-type]


def check(executable: MergedExecutable, modules: dict[str, nn.Module], requests: Sequence[Request], usual: Any) -> None:
    """`usual`: rows enough to tell how large outputs are, by tenant."""
    outcomes = run(executable, requests)
    assert executable.fault == ""
    compare(outcomes, modules, requests, usual)


def compare(
    outcomes: Sequence[Outcome], modules: dict[str, nn.Module], requests: Sequence[Request], usual: Any
) -> None:
    for (name, args), outcome in zip(requests, outcomes, strict=True):
        assert trouble(modules[name], args, outcome, usual(name)) is None, name


class OneGraph:
    """A graph of merged lanes, without a backend."""

    def __init__(self, executable: MergedExecutable, *requests: Request) -> None:
        self.executable, self.gpu = executable, FakeGpu()
        self.stream = self.gpu.new_stream()
        recipe = MergedRecipe.of(*self._mix(requests))
        self.graph: MergedGraph = capture_merged(self.gpu, Grant(self.stream.cuda_stream, 1, 132), executable, recipe)

    def _mix(self, requests: Sequence[Request]) -> tuple[MergedMix, list[Call]]:
        views = tuple(RequestView(i, name, args[0].shape[0], 0) for i, (name, args) in enumerate(requests))
        calls = [Call(args, args) for _, args in requests]
        mix = MergedMix.of(self.executable, Lane("merged", views, WHOLE, fused=True), calls)
        assert mix is not None
        return mix, calls

    def serve(self, *requests: Request) -> tuple[Outcome, ...]:
        mix, calls = self._mix(requests)
        assert self.graph.is_usable()
        before = len(_launches)
        with self.gpu.under(self.stream):
            outcomes = self.graph.serve(mix, calls)
        event = self.gpu.event()  # as a backend does, which then lets go of the inputs
        event.record(self.stream)
        event.synchronize()
        assert len(_launches) == before, "a replay launches what was captured, and nothing else"
        return outcomes
