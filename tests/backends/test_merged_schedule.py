"""Merged lanes of programs in the form for GPUs, on a CPU: what they launch together there, and that they are right.

On a CPU their kernels are plain torch; tests/kernels/triton/interpreted/test_merged.py runs the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.backends.merged import MergedExecutable
from spacetime.backends.merged_schedule import as_launched, merged_schedule
from spacetime.capture import cohort as cohorts
from spacetime.capture.merge import Launch, Segment
from spacetime.capture.on_gpu import on_gpu
from spacetime.kernels.bound import operation
from spacetime.merged import Step, is_product
from tests.capture.merging import aligned, captured_executable, run, trouble
from tests.capture.sketches import Part, draw, sketch

NAMES = ("a", "b", "c")
PARTS: dict[str, Part] = {
    "e": lambda: nn.Embedding(5, 8),
    "q": lambda: nn.Linear(8, 8),
    "k": lambda: nn.Linear(8, 8),
    "n": lambda: nn.LayerNorm(8),
    "o": lambda: nn.Linear(8, 8),
}


def body(m: Any, x: Tensor, ends: Any) -> Tensor:
    """Lookups, siblings, plain operations, a norm, a residual and an activation that a linear takes in."""
    hidden = m.e(x)
    scores = m.q(hidden) @ m.k(hidden).transpose(1, 2)
    found: Tensor = ends(torch.relu(m.o(m.n(scores @ hidden)) + hidden))
    return found


@pytest.fixture
def gpu_form(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fuse = cohorts.fuse
    monkeypatch.setattr(cohorts, "fuse", lambda captured: on_gpu(fuse(captured), captured.proof))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    operation._engine.cache_clear()
    yield
    operation._engine.cache_clear()


def two_programs() -> tuple[dict[str, nn.Module], MergedExecutable]:
    """The first has tenants a and b, the second c."""
    ends: list[Any] = [lambda y: y, lambda y: y.sum(1)]
    modules = {name: sketch(partial(body, ends=ends[name == "c"]), PARTS, seed) for seed, name in enumerate(NAMES)}
    tokens = draw((5,), 2, seed=0)
    first = captured_executable(tokens, a=modules["a"], b=modules["b"])
    return modules, aligned(first, captured_executable(tokens, c=modules["c"]))


@pytest.mark.usefixtures("gpu_form")
def test_lanes_are_right_and_only_linear_layers_are_common() -> None:
    modules, merged = two_programs()
    requests = [(name, draw((5,), rows, seed)) for seed, (name, rows) in enumerate((("c", 2), ("a", 1), ("b", 3)))]
    for (name, args), outcome in zip(requests, run(merged, requests), strict=True):
        assert trouble(modules[name], args, outcome, draw((5,), 8, 9)) is None
    launches = [item for item in merged.schedule.items if isinstance(item, Launch)]
    assert {call.step.target for launch in launches for call in launch.calls} == {"gpu_linear"}
    assert [len(launch.calls) for launch in launches] == [4, 2]
    assert {note.reason for note in merged.schedule.notes} == {"no common launch on a GPU"}
    assert len(merged.apart) == 6 and all(line.endswith("Triton has no kernels for cpu") for line in merged.apart)


@pytest.mark.usefixtures("gpu_form")
def test_a_token_outside_its_table_fails_its_request_alone() -> None:
    """Without kernels plain torch raises; with them the marks are looked at last, when all lookups have been made."""
    modules, merged = two_programs()
    requests = [(name, draw((5,), 1, seed)) for seed, name in enumerate("ca")]
    requests[1][1][0][0, 2] = 99
    good, bad = run(merged, requests)
    assert isinstance(bad.error, IndexError) and merged.fault == ""
    assert trouble(modules["c"], requests[0][1], good, draw((5,), 8, 9)) is None
    targets = [
        (item.member, step.target)
        for item in merged.schedule.items
        if isinstance(item, Segment)
        for step in item.steps
        if step.target in ("gpu_faults", "gpu_embedding")
    ]
    for member in range(2):
        assert [target for own, target in targets if own == member] == ["gpu_embedding", "gpu_faults"]


@pytest.mark.usefixtures("gpu_form")
def test_a_cost_model_is_shown_what_is_launched() -> None:
    _, merged = two_programs()
    launched = merged.launched
    together = [step for step in launched.steps if step.form != "alone"]
    assert [len(step.parts) for step in together] == [4, 2]
    assert all(is_product(launched.kernel(step.parts[0])) for step in together)
    assert launched.num_alone == merged.merged.num_alone
    assert merged.merged.num_launches < launched.num_launches < launched.num_alone


def test_programs_for_cpus_are_scheduled_as_they_are() -> None:
    _, merged = two_programs()
    members = [member.cohort for member in merged.members]
    assert as_launched(merged.merged, members) is merged.merged
    assert merged_schedule(merged.merged, members).num_launches == merged.schedule.num_launches
    targets = {call.step.target for item in merged.schedule.items if isinstance(item, Launch) for call in item.calls}
    assert "linear" in targets and "layer_norm" in targets
    assert merged.apart == () and isinstance(merged.merged.steps[0], Step)
