"""Mixes, recipes and static buffers of captured lanes."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from spacetime.backends.cuda.captured import Mix, Recipe, capture
from spacetime.backends.cuda.capturing import Outdated, pattern
from spacetime.backends.cuda.green import Grant
from spacetime.capture.fuse import Step
from spacetime.device import Partition
from spacetime.kernels import RowMap
from spacetime.kernels.rowmap import faults_in
from tests.backends.cuda.fake_gpu import FakeGpu
from tests.backends.cuda.lanes import Cohort, call, lane_of, rows
from tests.runtime.models import assert_equal, assert_three_parts, plain

WHOLE = Partition(1, 132, 132)
REQUESTS = (("c", rows(2)), ("a", rows(1, 2)), ("c", rows(1, 4)), ("b", rows(3, 1)))


def mix_of(cohort: Cohort, *requests: tuple[str, torch.Tensor]) -> Mix:
    return Mix.of(cohort.executable, lane_of(requests, WHOLE), [call(x) for _, x in requests])


def test_a_mix_is_the_same_whatever_the_order_and_finds_back_to_it() -> None:
    cohort = Cohort()
    mix, turned = mix_of(cohort, *REQUESTS), mix_of(cohort, *REQUESTS[::-1])
    assert mix.parts == turned.parts
    assert mix_of(cohort, *REQUESTS[:3]).parts != mix.parts
    values = list("wxyz")
    assert mix.unsort(mix.sort(values)) == tuple(values)
    names = [request.tenant for request in mix.lane.requests]
    slots = [cohort.executable.cohort.members[name].slot for name in names]
    assert slots == sorted(slots)
    with pytest.raises(KeyError):
        mix_of(cohort, ("nobody", rows(1)))


def test_a_recipe_keeps_nobody_alive_and_knows_when_it_is_outdated() -> None:
    cohort = Cohort()
    recipe = Recipe.of(mix_of(cohort, *REQUESTS), [call(x) for _, x in REQUESTS])
    assert all(tensor.is_meta for shapes in recipe.shapes for tensor in shapes)
    assert not recipe.is_outdated
    cohort.leave("a")
    assert recipe.is_outdated
    cohort.join("a", seed=7)
    assert recipe.is_outdated, "another tenant of that name"
    other = Recipe.of(mix_of(cohort, ("b", rows(1))), [call(rows(1))])
    del cohort
    gc.collect()
    assert other.executable() is None and other.is_outdated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_patterns_are_inputs_that_any_module_accepts(dtype: torch.dtype) -> None:
    state = torch.random.get_rng_state()
    values = pattern(torch.empty(3, 5, dtype=dtype, device="meta"))
    assert values.shape == (3, 5) and values.dtype == dtype
    assert not values.any() if not dtype.is_floating_point else bool(values.float().abs().max() <= 1)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody's random numbers change"


def test_a_graph_keeps_what_it_reads_and_gives_it_back() -> None:
    cohort, gpu = Cohort(), FakeGpu()
    stream = gpu.new_stream()
    grant = Grant(stream.cuda_stream, 1, 132)
    mix = mix_of(cohort, *REQUESTS)
    recipe = Recipe.of(mix, [call(x) for _, x in REQUESTS])
    graph = capture(gpu, grant, cohort.executable, recipe)
    stacks = [layer.stack.data_ptr() for layer in cohort.executable.cohort.layers]
    read = {tensor.untyped_storage().data_ptr() for tensor in graph.reads}
    assert set(stacks) <= read and graph.num_bytes > 0 and not graph.is_outgrown
    assert graph.tenants == ("a", "b", "c")
    with gpu.under(stream):
        outcomes = mix.unsort(graph.run(mix.sort([call(x) for _, x in REQUESTS])))
    for (name, x), outcome in zip(REQUESTS, outcomes, strict=True):
        assert_equal(outcome.value, plain(cohort.modules[name], x))
    graph.drop()
    assert graph.reads == [] and graph.inputs == [] and gpu.problems == []


def test_a_row_that_asks_for_what_does_not_exist_fails_its_request_alone_on_replay() -> None:
    """Embedding kernels cannot raise: they mark the row in the lane's words, also in a graph."""
    cohort, gpu = Cohort(), FakeGpu()
    executable, program = cohort.executable, cohort.executable._program

    def marking(row_map: RowMap, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        words = row_map.words(torch.device("cpu"))
        faults_in(words)[: x.shape[0]].copy_((x[:, 0] > 100).int())
        return program.run(row_map, x)

    fused = executable.cohort.fused
    executable._program = replace(program, run=marking)
    executable.cohort.fused = replace(fused, steps=(*fused.steps, Step("__faults", "gpu_faults")))
    stream = gpu.new_stream()
    mix = mix_of(cohort, *REQUESTS)
    recipe = Recipe.of(mix, [call(x) for _, x in REQUESTS])
    graph = capture(gpu, Grant(stream.cuda_stream, 1, 132), executable, recipe)
    for bad in (None, 0, 3, 1):
        inputs = [x.clone() for _, x in REQUESTS]
        if bad is not None:
            inputs[bad][-1, 0] = 1000.0
        with gpu.under(stream):
            outcomes = mix.unsort(graph.run(mix.sort([call(x) for x in inputs])))
        assert [index for index, outcome in enumerate(outcomes) if outcome.error is not None] == [bad] * (
            bad is not None
        )
        if bad is not None:
            assert_three_parts(outcomes[bad].error, "outside the table of its embedding", "rows", "check the inputs")
    assert gpu.problems == []


def test_what_a_lane_brings_to_the_device_for_its_rows_is_there_before_the_capture() -> None:
    """A capture can neither wait for a copy from the host nor lock memory of the host."""
    cohort, gpu = Cohort(), FakeGpu()
    program, seen = cohort.executable._program, list[tuple[bool, int, bool]]()

    def looking(row_map: RowMap, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        is_capture = "graph" in [what for what, _ in gpu.created]
        seen.append((is_capture, id(row_map), row_map._words is not None and bool(row_map._indices)))
        row_map.words(torch.device("cpu"))
        row_map.entry_per_row(cohort.executable.cohort.layers[0])
        return program.run(row_map, x)

    cohort.executable._program = replace(program, run=looking)
    recipe = Recipe.of(mix_of(cohort, *REQUESTS), [call(x) for _, x in REQUESTS])
    capture(gpu, Grant(gpu.new_stream().cuda_stream, 1, 132), cohort.executable, recipe)
    (before, first, _), (during, second, is_there) = seen
    assert (before, during) == (False, True) and first == second and is_there


def test_a_tenant_that_has_left_is_not_captured() -> None:
    cohort, gpu = Cohort(), FakeGpu()
    grant = Grant(gpu.new_stream().cuda_stream, 1, 132)
    recipe = Recipe.of(mix_of(cohort, *REQUESTS), [call(x) for _, x in REQUESTS])
    cohort.leave("b")
    with pytest.raises(Outdated):
        capture(gpu, grant, cohort.executable, recipe)
