"""Common launches of unlike programs, interpreted: linear layers of all members in one, eagerly and in one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from bench.device import merged as merged_stage
from spacetime.backends.cuda.capturing import GraphError
from spacetime.backends.cuda.graphs import CAPTURE_AFTER
from spacetime.backends.executables import Call
from spacetime.backends.merged import MergedExecutable
from spacetime.kernels.together import LateSpans, Spans
from spacetime.kernels.triton.grouped_linear import FIELDS
from spacetime.kernels.triton.launch import Launch
from spacetime.zoo.mlp import Mlp
from spacetime.zoo.transformers import BertEncoder
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.capture.merging import Request, captured_executable, run, trouble
from tests.capture.sketches import Part, draw, sketch
from tests.capture.tenants import weights_of
from tests.kernels.triton.interpreted.merging import OneGraph, check, commons, compare, merged, on_fake_gpu, seen
from tests.kernels.triton.interpreted.test_fused import GARBAGE, floats, seeded, tokens
from tests.runtime.models import PATIENCE_S, assert_equal, plain
from tests.runtime.test_merge import always_merged, merging_of, together

DEPTHS = (1, 2)
Body = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def fake_gpu() -> Iterator[None]:
    with on_fake_gpu():
        yield


class Berts:
    """Two encoders of unlike depth, two tenants each."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {
            f"{depth}.{seed}": seeded(partial(BertEncoder, width=16, depth=depth, heads=2, max_tokens=8), seed)
            for depth in DEPTHS
            for seed in range(2)
        }
        by_depth = [{n: m for n, m in self.modules.items() if n.startswith(f"{depth}.")} for depth in DEPTHS]
        self.executable = merged(*(captured_executable(tokens(2, 0), **its) for its in by_depth))

    def usual(self, _: str) -> tuple[Tensor, ...]:
        return tokens(4, 9)


@pytest.fixture(scope="module")
def berts() -> Berts:
    return Berts()


def ask(*requests: tuple[str, int]) -> list[Request]:
    return [(name, tokens(rows, 7 * seed + rows)) for seed, (name, rows) in enumerate(requests)]


MIXES = (
    [("1.0", 2), ("2.0", 1), ("2.1", 2), ("1.1", 1), ("1.0", 1)],
    [("2.1", 1), ("1.0", 3)],
)


def test_ragged_mixes_of_unlike_programs_equal_the_plain_modules(berts: Berts) -> None:
    for mix in MIXES:
        check(berts.executable, berts.modules, ask(*mix), berts.usual)
        assert [kernel.apart for kernel in commons(berts.executable)] == [{}] * 6
    # q, k and v of both; what follows attention, the two of the block that both have, pooler; q, k and v of one
    assert sorted(kernel.num_together for kernel in commons(berts.executable)) == [2, 2, 2, 2, 3, 6]
    assert {note.reason for note in berts.executable.schedule.notes} == {"no common launch on a GPU"}


def test_the_self_check_compares_with_each_cohort_alone(berts: Berts) -> None:
    calls = {name: Call(args, args) for name in berts.modules for args in [tokens(2, 3)]}
    assert berts.executable.check(calls) == {}


def test_a_token_outside_its_table_fails_its_request_alone(berts: Berts) -> None:
    requests = ask(*MIXES[1])
    requests[0][1][0][0, 2] = GARBAGE
    bad, good = run(berts.executable, requests)
    assert "outside the table" in str(bad.error) and berts.executable.fault == ""
    assert trouble(berts.modules["1.0"], requests[1][1], good, berts.usual("1.0")) is None


# -- programs in which one thing differs -------------------------------------------------------------------------------


def linear(rows: int, columns: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(rows, columns)


def conv(*given: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*given, padding=1)


A: dict[str, Part] = {"a": linear(8, 8)}
CONV: dict[str, Part] = {"c": conv(3, 4, 3), "n": lambda: nn.BatchNorm2d(4)}
DEPTHWISE: dict[str, Part] = {"c": lambda: nn.Conv2d(4, 4, 3, groups=4)}
SQUARE: dict[str, Part] = {"c": conv(4, 4, 3)}
PAIRS: dict[str, tuple[tuple[int, ...], Body, Body, dict[str, Part], dict[str, Part]]] = {
    "widths": ((8,), lambda m, x: m.a(x), lambda m, x: torch.relu(m.a(x)), A, {"a": linear(8, 5)}),
    "depths": (
        (8,),
        lambda m, x: m.a(x),
        lambda m, x: m.a(torch.cat([x, x, x], 1)).sigmoid(),
        A,
        {"a": lambda: nn.Linear(24, 7, bias=False)},
    ),
    "residuals": ((8,), lambda m, x: m.a(x), lambda m, x: nn.functional.gelu(m.a(x) + x), A, A),
    "convolutions": (
        (3, 5, 5),
        lambda m, x: torch.relu(m.n(m.c(x))),
        lambda m, x: torch.relu(m.n(m.c(x))).mean((2, 3)),
        *(CONV, CONV),
    ),
    "convolutions with residuals and clamps": (
        (4, 5, 4),
        lambda m, x: nn.functional.hardtanh(m.c(x) + x, -0.5, 0.5),
        lambda m, x: nn.functional.hardtanh(m.c(x) + x, -0.5, 0.5) + 1,
        *(SQUARE, SQUARE),
    ),
    "depthwise": (
        (4, 5, 4),
        lambda m, x: nn.functional.silu(m.c(x)),
        lambda m, x: nn.functional.silu(m.c(x)) * 2,
        *(DEPTHWISE, DEPTHWISE),
    ),
    "steps first": ((6, 8), lambda m, x: m.a(x.transpose(0, 1)), lambda m, x: m.a(x.transpose(0, 1)) + 1, A, A),
}


def pair(key: str) -> tuple[dict[str, nn.Module], MergedExecutable, Callable[[int, int], tuple[Tensor, ...]]]:
    """The first with tenants a and b, the second with c."""
    shape, one, other, parts, other_parts = PAIRS[key]
    first = {name: sketch(one, parts, seed) for seed, name in enumerate("ab")}
    second = {"c": sketch(other, other_parts, 2)}
    inputs = draw((shape,), 2, seed=0)
    executable = merged(*(captured_executable(inputs, **its) for its in (first, second)), grouped=True)
    return first | second, executable, lambda rows, seed: draw((shape,), rows, seed)


@pytest.mark.parametrize("key", PAIRS)
def test_unlike_layers_are_one_launch(key: str) -> None:
    modules, executable, inputs = pair(key)
    for mix in ([("a", 2), ("c", 1), ("b", 3), ("c", 2)], [("c", 3), ("b", 1)]):
        requests = [(name, inputs(rows, seed)) for seed, (name, rows) in enumerate(mix)]
        check(executable, modules, requests, lambda _: inputs(8, 9))
    (kernel,) = commons(executable)
    assert (kernel.num_together, kernel.apart) == (2, {})


def test_convolutions_whose_epilogues_differ_are_launched_by_themselves_and_say_why() -> None:
    bodies: list[Body] = [lambda m, x: torch.relu(m.c(x)), lambda m, x: m.c(x).mean((2, 3))]
    modules = {name: sketch(body, SQUARE, seed) for seed, (name, body) in enumerate(zip("ab", bodies, strict=True))}
    inputs = draw(((4, 5, 4),), 2, seed=0)
    executable = merged(*(captured_executable(inputs, **{name: module}) for name, module in modules.items()))
    check(executable, modules, [(name, draw(((4, 5, 4),), 2, 1)) for name in "ab"], lambda _: draw(((4, 5, 4),), 8, 9))
    (kernel,) = commons(executable)
    assert kernel.num_together == 0 and set(kernel.apart.values()) == {"no other call is like it"}


def test_what_the_launch_does_not_take_is_launched_by_itself_and_says_why() -> None:
    """Six columns of fp32 are 24 bytes."""
    parts: list[dict[str, Part]] = [{"a": linear(6, width)} for width in (6, 5)]
    modules = {name: sketch(lambda m, x: m.a(x), parts[i], i) for i, name in enumerate("ab")}
    inputs = draw(((6,),), 2, seed=0)
    members = [captured_executable(inputs, **{name: module}) for name, module in modules.items()]
    executable = merged(*members, grouped=True)
    check(executable, modules, [(name, draw(((6,),), 2, 1)) for name in "ab"], lambda _: draw(((6,),), 8, 9))
    (kernel,) = commons(executable)
    assert kernel.num_together == 0 and set(kernel.apart.values()) == {"6 columns of fp32 are no multiple of 16 bytes"}


def test_equal_layers_are_the_kernel_of_few_rows_once_for_each_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any depth; numbers of rows differ. A layer with a residual is not like one without: they are tiles of one."""
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(Launch, "run", lambda self: (ran.append((self.kernel, self.grid[-1])), seen(self))[1])
    modules, executable, inputs = pair("steps first")
    check(executable, modules, [("a", inputs(2, 1)), ("c", inputs(3, 2))], lambda _: inputs(8, 9))
    assert [each for each in ran if each[0] != "row_entries"] == [("stacked_gemv", 2)]
    ran.clear()
    modules, executable, inputs = pair("residuals")
    check(executable, modules, [("a", inputs(2, 1)), ("c", inputs(3, 2))], lambda _: inputs(8, 9))
    assert [kernel for kernel, _ in ran if kernel != "row_entries"] == ["grouped_linear"]


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_one_graph_serves_any_mix_of_both(berts: Berts) -> None:
    one = OneGraph(berts.executable, *ask(("1.0", 3), ("2.0", 2)))
    mixes = ([("2.1", 1), ("1.1", 4)], [("1.0", 1), ("2.0", 1), ("1.1", 2), ("2.1", 1)])
    for mix in mixes:
        requests = ask(*mix)
        compare(one.serve(*requests), berts.modules, requests, berts.usual)
    requests = ask(("1.0", 2), ("2.0", 1), ("1.1", 1))
    requests[2][1][0][0, 0] = GARBAGE
    outcomes = one.serve(*requests)
    assert [outcome.error is None for outcome in outcomes] == [True, True, False]
    assert "outside the table" in str(outcomes[2].error)
    compare(outcomes[:2], berts.modules, requests[:2], berts.usual)
    assert one.gpu.problems == []


@pytest.mark.parametrize(
    ("key", "column", "wrong"), [("widths", FIELDS.index("m"), 0), ("steps first", 1, "another's")]
)
def test_a_graph_with_wrong_tables_is_not_made(
    key: str, column: int, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to store; somebody else's weights."""
    write = LateSpans.write

    def broken(self: LateSpans) -> None:
        tables = [table for table, _ in self._unwritten if table.dtype == torch.int64]
        write(self)
        for table in tables:
            table[0, column] = table[1, column] if isinstance(wrong, str) else wrong

    monkeypatch.setattr(LateSpans, "write", broken)
    _, executable, inputs = pair(key)
    with pytest.raises(GraphError, match="answers otherwise"):
        OneGraph(executable, ("a", inputs(1, 1)), ("c", inputs(1, 1)))


def test_who_joins_is_served_by_the_graph_until_a_slab_grows() -> None:
    modules, executable, inputs = pair("widths")
    _, one_body, _, parts, _ = PAIRS["widths"]
    one = OneGraph(executable, ("a", inputs(2, 1)), ("c", inputs(1, 1)))
    member = next(member for member in executable.members if "a" in member.cohort.members)

    def join(name: str, seed: int) -> None:
        modules[name] = sketch(one_body, parts, seed)
        member.join(name, weights_of(member.cohort.captured, modules[name]))

    join("d", 33)
    member.cohort.leave("b")
    join("e", 34)  # into the slot of b
    requests = [("e", inputs(1, 4)), ("c", inputs(1, 5)), ("d", inputs(1, 6))]
    compare(one.serve(*requests), modules, requests, lambda _: inputs(8, 9))
    for seed in range(8):
        join(f"more{seed}", 50 + seed)
    assert not one.graph.is_usable() and one.graph.is_outgrown


def test_tiles_are_made_once_for_rows_up_to_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, executable, inputs = pair("widths")
    (kernel,) = commons(executable)
    uploads: list[torch.dtype] = []
    upload = Spans.upload

    def noted(self: Spans, table: Tensor, device: torch.device) -> Tensor:
        uploads.append(table.dtype)
        return upload(self, table, device)

    monkeypatch.setattr(Spans, "upload", noted)
    for rows in (3, 4, 3):
        requests = [("a", inputs(rows, 1)), ("c", inputs(1, 2))]
        check(executable, modules, requests, lambda _: inputs(8, 9))
    assert len(kernel._tiles) == 1 and uploads == [torch.int64] * 3
    monkeypatch.setattr("spacetime.kernels.bound.together.MOST_TABLES", 1)
    check(executable, modules, [("a", inputs(1, 1)), ("c", inputs(1, 2))], lambda _: inputs(8, 9))
    assert len(kernel._tiles) == 1 and uploads[3:] == [torch.int64, torch.int32]


def test_common_launches_are_compiled_for_the_usual_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled depends on the rows of all: the tiles of few rows are not those of many."""
    modules, executable, inputs = pair("steps first")
    ran: list[tuple[int, ...]] = []

    def note(self: Launch) -> None:
        if self.kernel == "stacked_gemv":
            ran.append(self.grid)
        else:
            seen(self)

    monkeypatch.setattr(Launch, "run", note)
    calls = {name: Call(args, args) for name in modules for args in [inputs(2, 0)]}
    executable.warm(calls, (2, 8))
    assert [grid[1:] for grid in ran] == [(2, 2), (8, 2)]


def test_a_runtime_merges_lanes_and_replays_them() -> None:
    """All of it: prepared and checked in the background, planned, run on partitions' streams, captured, replayed."""
    backend, gpu = with_gpu()
    modules = {f"{depth}.{seed}": seeded(small_mlp(depth), seed) for depth in (1, 2) for seed in range(2)}

    def inputs(rows: int, seed: int) -> tuple[Tensor, ...]:
        return floats(16)(rows, seed)

    with st.Runtime(backend, always_merged, merge=True) as rt:
        tenants = {name: rt.add(module, inputs(2, 0), name) for name, module in modules.items()}
        merging_of(rt).settle()
        for seed in range(40):
            requests = [(name, inputs(1, seed)) for name in modules]
            futures = together(rt, tenants, requests)
            for (name, args), future in zip(requests, futures, strict=True):
                assert_equal(future.result(PATIENCE_S), plain(modules[name], *args), [1.0])
            backend.settle()
            if backend.graphs.report().replays > 2:
                break
        (report,) = rt.explain().merged
    assert backend.graphs.report().replays > 2 and backend.graphs.report().refused == ()
    assert report.num_lanes > CAPTURE_AFTER and report.num_launches_executed < report.num_alone_executed
    assert report.apart == ()
    assert gpu.problems == []


def test_what_the_stage_for_devices_does_but_for_its_clocks() -> None:
    """Its first contact with a GPU should not be with errors of its own."""
    with pytest.MonkeyPatch.context() as patch:
        makes = [lambda seed, make=make: seeded(make, seed) for make in (small_mlp(1), small_mlp(2, classes=4))]
        patch.setitem(merged_stage.PAIRS, "small", (*makes, floats(16), True))  # type: ignore[arg-type]
        pair = merged_stage.Pair("small", torch.float32, "cpu", num_each=2)
    assert max(pair.eagerly(requests) for requests in pair.mixes()) <= 1e-5
    assert pair.launched["apart"] == [] and pair.launched["together"] == [2, 2]
    gpu = FakeGpu()
    stream = gpu.new_stream()
    graph = pair.graph(gpu, stream.cuda_stream)
    own = [pair.own_graph(member, gpu, stream.cuda_stream) for member in pair.members]
    for requests in pair.mixes():
        mix, calls = pair.mix(requests)
        with gpu.under(stream):
            assert pair.worst(requests, graph.serve(mix, calls)) <= 1e-5
    assert len(own) == 2 and own[0].bucket == 2


def test_the_stage_for_devices_shares_the_trunk_of_unlike_heads() -> None:
    makes, trunk = [], lambda seed: seeded(lambda: Mlp(width=128, depth=1, classes=16), seed)
    for classes in (2, 3):
        makes.append(merged_stage._headed(trunk, 16, classes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(merged_stage.PAIRS, "small heads", (*makes, floats(128), False))  # type: ignore[arg-type]
        patch.setattr(merged_stage, "SHARING", ("small heads",))
        pair = merged_stage.Pair("small heads", torch.float32, "cpu", num_each=2)
    assert max(pair.eagerly(requests) for requests in pair.mixes()) <= 1e-5
    assert pair.launched["shared_mb"] == round(4 * 128 * 128 / 1e6, 2)
    gpu = FakeGpu()
    stream = gpu.new_stream()
    graph = pair.graph(gpu, stream.cuda_stream)
    for requests in pair.mixes():
        mix, calls = pair.mix(requests)
        with gpu.under(stream):
            assert pair.worst(requests, graph.serve(mix, calls)) <= 1e-5
    assert gpu.problems == []


def small_mlp(depth: int, classes: int = 6) -> Callable[[], nn.Module]:
    return lambda: Mlp(width=16, depth=depth, classes=classes)
