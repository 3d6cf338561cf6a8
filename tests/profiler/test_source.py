"""Captured programs as the profiler runs them: the module's own results, each kernel once, nothing kept too long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import spacetime as st
from spacetime import zoo
from spacetime.capture.program import Captured
from spacetime.errors import CaptureError
from spacetime.ir import Program
from spacetime.profiler import source
from spacetime.profiler.site import Reading, time_on_host
from spacetime.profiler.source import Source, recall
from spacetime.profiler.straight import _Writer
from tests.profiler.fakes import FakeSite, law, program


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def convolutional() -> nn.Module:
    """A kernel of several results, views, literals, a sum."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x))
            y = torch.relu(y) + y.sigmoid() * 0.5
            return self.head(y.flatten(2).mean(-1))

    return Small().eval()


MODULES = {
    "mlp": lambda: (zoo.build("mlp"), zoo.example("mlp")),
    "convolutional": lambda: (convolutional(), (torch.rand(2, 3, 5, 5),)),
    "recurrent": lambda: (zoo.build("gru_cell"), zoo.example("gru_cell")),
}


def straight_only(found: Source) -> Source:
    """Its program by itself, beside no module: test_around.py has the rest."""
    return replace(found, module=None)


def captured(name: str) -> tuple[nn.Module, Program, Source]:
    module, example = MODULES[name]()
    described = st.capture(module, example)
    return module, described, recall(described)


@pytest.mark.parametrize("model", list(MODULES))
def test_every_kernel_runs_once_in_order_on_as_many_rows_as_asked(model: str) -> None:
    _, described, found = captured(model)
    for rows in (1, 5):
        indices = []
        for index, call in found.kernels(rows):
            indices.append(index)
            results = call()
            first = results[0] if isinstance(results, (tuple, list)) else results
            spec = described.kernels[index].outputs[0]
            assert first.numel() == spec.size(rows)
        assert indices == list(range(len(described.kernels)))


def test_a_run_computes_what_the_module_computes() -> None:
    module, example = MODULES["convolutional"]()
    described = st.capture(module, example)
    *_, (last, result) = ((index, call()) for index, call in recall(described).kernels(2))
    assert last == len(described.kernels) - 1
    assert torch.allclose(result, module(*example), atol=1e-5)


@pytest.mark.parametrize("name", list(MODULES))
def test_a_timed_run_computes_it_too(name: str) -> None:
    module, example = MODULES[name]()
    found = recall(described := st.capture(module, example))
    site = FakeSite((1,), law(0, 1.0))
    found.time(2, site)
    readings: list[Reading] = []
    values = list(found._values(2).values())
    outputs = found._straight(values, site.now_us, site.interruptions, readings.append)
    expected = pytree.tree_leaves(module(*example))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(outputs, expected, strict=True))
    assert [reading[0] for reading in readings] == list(range(len(described.kernels)))


def test_as_many_modules_are_entered_as_the_model_calls() -> None:
    """The model itself, three layers; and a layer that is called twice counts twice."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.other(self.layer(x)))

    described = st.capture(Twice().eval(), (torch.ones(2, 3),))
    found = recall(described)
    for _ in found.kernels(2):
        pass
    text = _Writer([*found.exported.weights, *found.exported.inputs]).source(found._steps, found.exported.outputs)
    assert text.count("enter(None)") == 4


def test_a_call_can_be_repeated_and_gives_the_same() -> None:
    _, _, found = captured("convolutional")
    for _, call in found.kernels(1):
        first, second = call(), call()
        for one, other in zip(
            first if isinstance(first, tuple) else [first],
            second if isinstance(second, tuple) else [second],
            strict=True,
        ):
            assert torch.equal(one, other)


def test_activations_go_when_their_last_reader_is_done() -> None:
    _, described, found = captured("mlp")
    alive: list[weakref.ref[torch.Tensor]] = []
    for _, call in found.kernels(3):
        alive.append(weakref.ref(call.args[0]))  # type: ignore[attr-defined]
        del call
    gc.collect()
    assert sum(each() is not None for each in alive) <= 2  # the last one's
    assert len(alive) == len(described.kernels)


def test_a_timed_run_has_a_sample_for_every_kernel_and_one_for_the_rest() -> None:
    _, described, found = captured("recurrent")
    found, site = straight_only(found), FakeSite((1,), law(0, 1.0))
    ticks = iter(range(10_000))
    site.now_us = lambda: float(next(ticks))  # type: ignore[method-assign]
    samples = found.time(2, site)
    assert [sample.us for sample in samples[:-1]] == [1.0] * len(described.kernels)
    assert samples[-1].us == len(described.kernels) + 1


# -- remembering ------------------------------------------------------------------------------------------


def test_a_program_and_its_equals_are_recalled() -> None:
    _, described, found = captured("mlp")
    copy = Program.from_json(described.to_json())
    assert copy is not described and recall(copy) is found


def test_a_program_that_was_not_captured_here_is_refused() -> None:
    with pytest.raises(CaptureError, match="cannot be measured") as caught:
        recall(program(8, signature="0123456789abcdef"))
    assert "modelled device" in str(caught.value)


def test_what_was_remembered_goes_with_the_program() -> None:
    module, described, found = captured("recurrent")
    weight = weakref.ref(next(module.parameters()))
    copy = Program.from_json(described.to_json())
    del module, described, found
    gc.collect()
    assert weight() is None
    with pytest.raises(CaptureError):
        recall(copy)
    assert copy.signature not in source._sources


def test_two_captures_of_one_architecture_each_have_their_weights() -> None:
    first, second = (st.capture(zoo.build("mlp", seed), zoo.example("mlp")) for seed in (0, 1))
    assert first == second and recall(first) is not recall(second)
    del second
    gc.collect()
    assert recall(first).kernel_nodes


def test_a_kernel_that_was_interrupted_is_told_apart() -> None:
    """Interruptions are only asked for after kernels that took long: quicker ones were not interrupted."""
    _, described, found = captured("recurrent")
    found, site = straight_only(found), FakeSite((1,), law(0, 1.0))
    found.time(2, site)
    clock = iter(
        [0.0, *(us for index in range(100) for us in (index * 1000.0, index * 1000 + (100.0 if index == 3 else 1.0)))]
    )
    counts = iter([5, 6, 6])  # before, after the kernel that took long, at the end
    site.now_us = lambda: next(clock)  # type: ignore[method-assign]
    site.interruptions = lambda: next(counts)  # type: ignore[method-assign]
    samples = found.time(2, site)
    assert [index for index, sample in enumerate(samples[:-1]) if sample.disturbed] == [3]
    assert samples[3].us == 100.0 and samples[-1].disturbed
    assert len(samples) == len(described.kernels) + 1


def test_what_lies_between_is_told_apart_too() -> None:
    _, _, found = captured("recurrent")
    found, site = straight_only(found), FakeSite((1,), law(0, 1.0))
    found.time(2, site)
    counts = iter([5, 6])
    site.interruptions = lambda: next(counts)  # type: ignore[method-assign]
    assert [sample.disturbed for sample in found.time(2, site)][-2:] == [False, True]


# -- on another device ------------------------------------------------------------------------------------


def test_a_source_moves_to_another_device_with_what_its_graph_makes() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.table(torch.arange(5)))

    described = st.capture(Positions().eval(), (torch.rand(2, 5, 4),))
    here = recall(described)
    there = here.on("meta")
    assert here.on("cpu") is here
    assert {weight.tensor.device.type for weight in here.exported.weights.values()} == {"cpu"}
    results = [(index, call()) for index, call in there.kernels(3)]
    assert [index for index, _ in results] == list(range(len(described.kernels)))
    assert results[-1][1].shape == (3, 5, 8) and {result.device.type for _, result in results} == {"meta"}
    samples = there.time(3, FakeSite((1,), law(0, 1.0)))
    assert len(samples) == len(described.kernels) + 1
    storages = {weight.tensor.untyped_storage()._cdata for weight in there.exported.weights.values()}
    assert len(storages) == len({weight.tensor.data_ptr() for weight in here.exported.weights.values()})


def test_the_module_is_remembered_with_its_program() -> None:
    module, example = MODULES["mlp"]()
    described = st.capture(module, example)
    kept, copy = recall(described), Program.from_json(described.to_json())
    source.remember(Captured(copy, kept.exported, None, (), {}, kept.kernel_nodes), example, module)  # type: ignore[arg-type]
    assert recall(copy).module is module and recall(copy).has_code


def test_reading_the_clock_is_in_no_sample() -> None:
    """Two readings are a tick apart; the second kernel takes long enough to ask for interruptions, which takes five."""
    site = FakeSite((1,), law(0, 1.0))
    site.clock_us, site.reading_us, site.asking_us = 1.0, 2.0, 5.0
    clock = iter([0.0, 1.0, 4.0, 6.0, 107.0, 120.0])  # begin, a kernel, another, end
    site.now_us = lambda: next(clock)  # type: ignore[method-assign]

    def run(now: Callable[[], float], interruptions: Callable[[], int], read: Callable[[Reading], object]) -> None:
        read((0, now(), now(), None))
        read((1, now(), now(), interruptions()))

    short, long, between = (sample.us for sample in time_on_host(site, run, 2))
    assert (short, long) == (2.0, 100.0)
    assert between == 120 - 102 - 2 * 2 - 5
