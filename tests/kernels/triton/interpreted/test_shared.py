"""Weights that unlike programs have in common, in the form for GPUs, interpreted: they lie in one slab, and kernels of
both programs read them there; places that guests keep hold NaN here, so nobody can read them unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.backends.cuda.anymix import AnyGraph, AnyRecipe, capture_any
from spacetime.backends.cuda.captured import Mix
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.capture import slab as slabs
from spacetime.capture.cohort import Cohort
from spacetime.capture.slab import Slab
from spacetime.capture.store import Store
from spacetime.kernels.triton.launch import Launch
from spacetime.plan import Lane, RequestView
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu
from tests.capture.merging import Request, run, trouble
from tests.capture.sketches import Part, RowShape, draw, sketch
from tests.capture.tenants import capture, weights_of
from tests.kernels.triton.interpreted.merging import WHOLE, OneGraph, check, commons, compare, merged, on_fake_gpu, seen
from tests.kernels.triton.interpreted.test_fused import seeded
from tests.runtime.models import assert_equal, plain

Body = Callable[..., Any]
Inputs = tuple[Tensor, ...]


@pytest.fixture(scope="module", autouse=True)
def fake_gpu() -> Iterator[None]:
    with on_fake_gpu():
        yield


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs grow with nearly every tenant, and contents stay where kernels have their addresses."""
    monkeypatch.setattr(slabs, "_RESERVE", 1)
    plain = Slab.__init__

    def staying(self: Slab, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        self.vacates = False
        self.stack.fill_(torch.nan)

    monkeypatch.setattr(Slab, "__init__", staying)


# A frozen part `a` and what follows it; several rows of x take other kernels than one.
BACKBONES: dict[str, tuple[RowShape | int, Callable[[], nn.Module], tuple[Body, Body], str]] = {
    "gemv": ((8,), lambda: nn.Linear(8, 8), (lambda m, x: m.a(x), lambda m, x: m.a(x) * 2), "stacked_gemv"),
    "tiles": ((40, 8), lambda: nn.Linear(8, 8), (lambda m, x: m.a(x), lambda m, x: m.a(x) * 2), "grouped_linear"),
    "convolution": (
        (4, 5, 5),
        lambda: nn.Conv2d(4, 4, 3, padding=1),
        (lambda m, x: m.a(x), lambda m, x: m.a(x) * 2),
        "stacked_conv2d",
    ),
    "depthwise": (
        (4, 5, 5),
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        (lambda m, x: m.a(x), lambda m, x: m.a(x) * 2),
        "stacked_depthwise",
    ),
    "embedding": (
        5,
        lambda: nn.Embedding(5, 16),
        (lambda m, x: m.a(x).sum(1), lambda m, x: m.a(x).amax(1)),
        "slot_embedding",
    ),
}


class Family:
    """Tenants a0 and a1 of one program, b0 and b1 of another; a0, b0 and b1 have one backbone, a1 its own."""

    def __init__(self, key: str) -> None:
        self.shape, backbone, self.bodies, self.kernel = BACKBONES[key]
        self.parts: dict[str, Part] = {"a": backbone}
        self.store = Store(least_bytes=64)
        self.modules: dict[str, nn.Module] = {}
        self.programs = [self._program(which) for which in (0, 1)]
        for name, seed in (("a0", 1), ("a1", 2), ("b0", 1), ("b1", 1)):
            self.join(name, seed)

    def _program(self, which: int) -> CohortExecutable:
        captured = capture(sketch(self.bodies[which], self.parts), self.inputs(2, 0))
        return CohortExecutable(Cohort(captured, store=self.store), {})

    def inputs(self, rows: int, seed: int) -> Inputs:
        return draw((self.shape,), rows, seed)

    def join(self, name: str, seed: int) -> None:
        which = "ab".index(name[0])
        self.modules[name] = sketch(self.bodies[which], self.parts, seed)
        cohort = self.programs[which].cohort
        self.programs[which].join(name, weights_of(cohort.captured, self.modules[name]))

    def leave(self, name: str) -> None:
        self.programs["ab".index(name[0])].cohort.leave(name)

    def slab(self, which: int) -> Slab:
        """Of the backbone."""
        (found,) = [layer.slab for layer in self.programs[which].cohort.layers if layer.slab.may_share]
        return found

    def usual(self, _: str) -> Inputs:
        return self.inputs(8, 9)

    def requests(self, *names: str) -> list[Request]:
        return [(name, self.inputs(1 + seed % 2, seed)) for seed, name in enumerate(names)]

    def merged(self) -> MergedExecutable:
        return merged(*self.programs, grouped=True)


MIX = ("b1", "a0", "b0", "a1", "b1")


@pytest.mark.parametrize("key", BACKBONES)
def test_equal_weights_of_unlike_programs_lie_in_one_place_and_are_read_there(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Launch, "run", lambda self: (ran.append(self.kernel), seen(self))[1])
    family = Family(key)
    own, guest = family.slab(0), family.slab(1)
    assert (own.num_stored, guest.num_stored, guest.num_entries) == (2, 0, 1)
    assert family.store.num_contents == 2 and guest.view(0).data_ptr() == own.view(0).data_ptr()
    assert guest.stack[0].isnan().all(), "nothing was written there"
    executable = family.merged()
    check(executable, family.modules, family.requests(*MIX), family.usual)
    assert family.kernel in ran and [kernel.apart for kernel in commons(executable)] in ([{}], [])
    ran.clear()
    check(executable, family.modules, family.requests("a1", "a0", "a1"), family.usual)  # by itself
    check(executable, family.modules, family.requests("b1", "b0"), family.usual)


class Solo:
    """A graph of one of the programs, for any mix."""

    def __init__(self, family: Family, which: int, *names: str) -> None:
        self.family, self.executable, self.gpu = family, family.programs[which], FakeGpu()
        self.stream = self.gpu.new_stream()
        mix, calls = self._mix(family.requests(*names))
        recipe = AnyRecipe.of(mix, calls, 8)
        self.graph: AnyGraph = capture_any(self.gpu, Grant(self.stream.cuda_stream, 1, 132), self.executable, recipe)

    def _mix(self, requests: list[Request]) -> tuple[Mix, list[Call]]:
        views = tuple(RequestView(i, name, args[0].shape[0], 0) for i, (name, args) in enumerate(requests))
        calls = [Call(args, args) for _, args in requests]
        return Mix.of(self.executable, Lane("one", views, WHOLE, fused=True), calls), calls

    def check(self, *names: str) -> None:
        requests = self.family.requests(*names)
        mix, calls = self._mix(requests)
        assert self.graph.is_usable()
        with self.gpu.under(self.stream):
            outcomes = self.graph.serve(mix, calls)
        compare(outcomes, self.family.modules, requests, self.family.usual)
        event = self.gpu.event()
        event.record(self.stream)
        event.synchronize()


@pytest.mark.parametrize("key", ["gemv", "embedding"])
def test_a_graph_of_guests_follows_their_weights(key: str) -> None:
    """They move when the slab that they lie in grows; they stay when their last tenant there leaves."""
    family = Family(key)
    one = Solo(family, 1, "b0", "b1", "b0")
    one.check("b1", "b0")
    before = family.slab(0).stack
    for seed in range(5):
        family.join(f"a{seed + 2}", seed + 10)
    assert family.slab(0).stack is not before, "it has grown"
    before.fill_(torch.nan)
    one.check("b0", "b1", "b1")
    place = family.slab(1).view(0).data_ptr()
    family.leave("a0")
    family.join("a9", 30)
    assert family.slab(1).view(0).data_ptr() == place, "nobody writes where kernels may read"
    one.check("b1", "b0")
    assert one.gpu.problems == []


def test_a_graph_from_before_weights_were_shared_is_captured_again() -> None:
    family = Family("gemv")
    family.leave("b0")
    family.leave("b1")
    family.join("b2", 5)  # with weights of its own
    family.leave("a0")
    one = Solo(family, 1, "b2", "b2")
    assert not family.slab(1).shares
    one.check("b2")
    family.join("b3", 2)  # those of a1
    assert family.slab(1).shares and not one.graph.is_usable() and one.graph.is_outgrown
    Solo(family, 1, "b2", "b3").check("b3", "b2")


def test_one_graph_serves_any_mix_of_both() -> None:
    family = Family("gemv")
    one = OneGraph(family.merged(), ("a0", family.inputs(5, 0)), ("b0", family.inputs(4, 1)))
    for mix in (MIX, ("b0", "a1"), ("a0", "a0", "b1")):
        requests = family.requests(*mix)
        compare(one.serve(*requests), family.modules, requests, family.usual)
    assert one.gpu.problems == []


# -- rows that all use the same weights --------------------------------------------------------------------------------


def frozen(key: str) -> Family:
    """Everybody has one backbone."""
    family = Family(key)
    family.leave("a1")
    family.join("a1", 1)
    return family


def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Kernels that run from now on, and how many rows they are launched for."""
    ran: list[tuple[str, int]] = []

    def noted(self: Launch) -> None:
        if self.kernel != "row_entries":
            ran.append((self.kernel, self.grid[1] if len(self.grid) > 1 else 0))
        seen(self)

    monkeypatch.setattr(Launch, "run", noted)
    return ran


@pytest.mark.parametrize(("rows", "kernel"), [((2, 2), ("stacked_gemv", 1)), ((2, 5), ("grouped_linear", 0))])
def test_rows_of_one_weight_are_one_row_of_many(
    rows: tuple[int, int], kernel: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = frozen("gemv")
    executable = family.merged()
    ran = launched(monkeypatch)
    mine, others = rows
    requests = [("a0", family.inputs(1, 0)), ("a1", family.inputs(mine - 1, 1)), ("b1", family.inputs(others, 2))]
    check(executable, family.modules, requests, family.usual)
    assert ran == [kernel]
    (common,) = commons(executable)
    assert (common.num_together, common.apart) == (2, {})


def test_a_graph_in_which_rows_are_one_is_not_used_when_somebody_has_other_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = frozen("gemv")
    ran = launched(monkeypatch)
    one = Solo(family, 0, "a0", "a1", "a0")
    one.check("a1", "a0")
    assert set(ran) == {("slot_gemv", 1)}
    family.join("a2", 1)
    one.check("a2", "a0")
    family.join("a3", 7)
    assert not one.graph.is_usable()
    ran.clear()
    Solo(family, 0, "a0", "a3", "a1").check("a3", "a1", "a0")
    assert ("slot_gemv", 8) in ran


WIDTH = 128  # a square of floats is large enough to be shared
BACKBONE_BYTES = 4 * WIDTH * WIDTH
X = torch.linspace(-1, 1, WIDTH).reshape(1, WIDTH)


def headed(classes: int, seed: int) -> nn.Sequential:
    """One backbone; the classes make the architecture, the seed the head."""
    return nn.Sequential(
        seeded(lambda: nn.Linear(WIDTH, WIDTH), 5), seeded(lambda: nn.Linear(WIDTH, classes), seed)
    ).eval()


def test_a_runtime_holds_a_common_backbone_once() -> None:
    backend, gpu = with_gpu()
    modules = {f"{classes}.{seed}": headed(classes, seed) for classes in (2, 3) for seed in range(2)}
    with st.Runtime(backend) as rt:
        tenants: dict[str, st.Tenant] = {}
        held: list[int] = []
        for name, module in modules.items():
            tenants[name] = rt.add(module, (X,), name)
            held.append(rt.memory().resident_bytes)
        heads = [sum(tensor.nbytes for tensor in module[1].parameters()) for module in modules.values()]
        biases = [WIDTH * 4, 0, WIDTH * 4, 0]  # too small to be shared with another program
        grown = [after - before for before, after in pairwise([0, *held])]
        assert grown == [heads[i] + biases[i] + BACKBONE_BYTES * (i == 0) for i in range(4)]
        assert [each.shared_weight_bytes >= BACKBONE_BYTES for each in rt.memory().tenants] == [True] * 4
        for _ in range(2):
            for name, module in modules.items():
                assert_equal(tenants[name](X), plain(module, X))
        for name in ("2.0", "2.1"):
            rt.remove(name)
        assert rt.memory().resident_bytes == BACKBONE_BYTES + biases[2] + heads[2] + heads[3]
        assert_equal(tenants["3.1"](X), plain(modules["3.1"], X))
    assert gpu.problems == []


def test_a_planted_read_of_the_place_that_a_guest_keeps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family("gemv")
    executable = family.merged()
    wrong = [[family.slab(1).stack[0].data_ptr()] * 2, [family.slab(0).stack[0].data_ptr()] * 2]
    monkeypatch.setattr(Slab, "addresses", lambda self, entries: wrong[self is family.slab(0)][: len(entries)])
    outcomes = run(executable, family.requests("a0", "b0"))
    assert trouble(family.modules["b0"], family.inputs(2, 1), outcomes[1], family.usual("b0")) is not None
