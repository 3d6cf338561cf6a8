"""Tenants whose inputs vary in length: results of every length, lanes shared across lengths, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import spacetime
from spacetime.backends.executables import Call
from spacetime.backends.families import LengthsExecutable
from spacetime.capture.lengths import Cut, Lengths
from spacetime.capture.selfcheck import problem
from spacetime.device import Partition
from spacetime.kernels import prepacked_conv
from spacetime.plan import Lane, RequestView, Segment
from spacetime.runtime.prepare import Preparer
from spacetime.zoo.transformers import BertEncoder

LEAST, MOST = 4, 16
DYNAMIC = {name: {1: (LEAST, MOST)} for name in ("token_ids", "segment_ids", "mask")}
LENGTHS = Lengths(LEAST, MOST, ((0, 1), (1, 1), (2, 1)))


def bert(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return BertEncoder(width=16, depth=1, heads=2, max_tokens=MOST).eval()


def tokens(rows: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, length), generator=generator)
    return ids, torch.zeros_like(ids), torch.ones_like(ids)


class Unmasked(nn.Module):
    """A mean over all tokens: padding shows."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(8, 8)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.inner(states) + 1).mean(dim=1)


def results(module: nn.Module, args: tuple[Any, ...]) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(module(*args))


class Particular(nn.Module):
    """Takes what its example has, and nothing below six."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, states: Tensor) -> Tensor:
        if states.shape[1] < 6:
            raise ValueError("too short for me")
        return torch.tanh(self.inner(states))


@pytest.fixture(scope="module")
def family() -> tuple[LengthsExecutable, list[nn.Module]]:
    """Three BERTs in one family of programs, and three that are like them."""
    preparer = Preparer()
    for seed in range(3):
        prepared = preparer.prepare(f"t{seed}", bert(seed), tokens(2, 8), exact=False, lengths=LENGTHS)
    assert isinstance(prepared.executable, LengthsExecutable)
    return prepared.executable, [bert(seed) for seed in range(3)]


def run(executable: LengthsExecutable, inputs: list[tuple[int, tuple[Any, ...]]], *, fused: bool = True) -> list[Any]:
    views = tuple(RequestView(n, f"t{tenant}", args[0].shape[0], 0) for n, (tenant, args) in enumerate(inputs))
    lane = Lane("family", views, (Segment(Partition(1, 1, 1)),), fused)
    outcomes = executable.run(lane, [Call(args, tuple(args)) for _, args in inputs])
    assert [outcome.error for outcome in outcomes] == [None] * len(inputs)
    return [outcome.value for outcome in outcomes]


@settings(max_examples=30)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(LEAST, MOST), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    fused=st.booleans(),
)
def test_every_length_gives_the_results_of_the_module(
    family: tuple[LengthsExecutable, list[nn.Module]], requests: list[tuple[int, int, int, int]], fused: bool
) -> None:
    executable, plain = family
    inputs = [(tenant, tokens(rows, length, seed)) for tenant, rows, length, seed in requests]
    for (tenant, args), value in zip(inputs, run(executable, inputs, fused=fused), strict=True):
        assert problem(pytree.tree_leaves(value), results(plain[tenant], args)) is None


def test_lengths_that_round_up_to_the_same_share_launches(
    family: tuple[LengthsExecutable, list[nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    executable, _ = family
    assert set(executable.programs) == {4, 8, 16}
    ran: list[tuple[int, int]] = []
    for step, program in executable.programs.items():

        def spy(lane: Lane, payloads: Any, step: int = step, real: Any = program.run) -> Any:
            ran.append((step, len(payloads)))
            return real(lane, payloads)

        monkeypatch.setattr(program, "run", spy)
    run(executable, [(0, tokens(1, 5)), (1, tokens(2, 8)), (2, tokens(1, 7)), (0, tokens(1, 13))])
    assert ran == [(8, 3), (16, 1)]


def test_weights_are_stored_once_for_all_lengths(family: tuple[LengthsExecutable, list[nn.Module]]) -> None:
    executable, _ = family
    main = {id(layer) for layer in executable.main.cohort.layers}
    for step in (4, 8):
        cohort = executable.programs[step].cohort
        pairs = zip(cohort.layers, cohort.fused.operands, strict=True)
        assert all(id(layer) in main for layer, operand in pairs if operand.weight is not None)


def test_what_padding_would_change_runs_as_it_is() -> None:
    preparer, lengths = Preparer(), Lengths(4, 16, ((0, 1),))
    for seed in range(2):
        module = Unmasked(seed).eval()
        prepared = preparer.prepare(f"t{seed}", module, (torch.ones(2, 8, 8),), exact=False, lengths=lengths)
    executable = prepared.executable
    assert isinstance(executable, LengthsExecutable)
    assert executable.cut is None
    assert "padding" in executable.why_not_padded
    inputs = [(seed, (torch.randn(2, length, 8),)) for seed in range(2) for length in (4, 5, 8, 11, 16)]
    for (seed, args), value in zip(inputs, run(executable, inputs), strict=True):
        assert problem([value], results(Unmasked(seed).eval(), args)) is None


def test_outputs_lose_the_padding_and_only_that() -> None:
    cut = Cut.find([torch.ones(2, 5, 3), torch.ones(2, 3)], [torch.ones(2, 8, 3), torch.ones(2, 3)], (5, 8))
    assert cut is not None
    states, pooled = cut((torch.arange(48.0).view(2, 8, 3), torch.ones(2, 3)), 5)
    assert torch.equal(states, torch.arange(48.0).view(2, 8, 3)[:, :5])
    assert states.untyped_storage().nbytes() == states.nbytes
    assert pooled.shape == (2, 3)
    assert Cut.find([torch.ones(2, 5)], [torch.ones(2, 7)], (5, 8)) is None


def test_members_leave_every_program() -> None:
    preparer = Preparer()
    modules = [bert(seed) for seed in range(2)]
    for seed, module in enumerate(modules):
        prepared = preparer.prepare(f"t{seed}", module, tokens(2, 8), exact=False, lengths=LENGTHS)
    executable = prepared.executable
    assert isinstance(executable, LengthsExecutable)
    preparer.forget("t0")
    assert all(set(program.cohort.members) == {"t1"} for program in executable.programs.values())
    args = tokens(2, 6)
    assert problem(pytree.tree_leaves(run(executable, [(1, args)])[0]), results(bert(1), args)) is None
    preparer.forget("t1")
    assert not preparer.varying
    assert not preparer.cohorts
    assert problem(results(modules[0], args), results(bert(0), args)) is None


# -- through the runtime ----------------------------------------------------------------------------------


@pytest.fixture
def runtime() -> Iterator[spacetime.Runtime]:
    with spacetime.Runtime(device="cpu") as rt:
        yield rt


def test_a_runtime_serves_mixed_lengths(runtime: spacetime.Runtime) -> None:
    tenants = [runtime.add(bert(seed), tokens(2, 8), f"t{seed}", dynamic=DYNAMIC) for seed in range(2)]
    inputs = [(seed, tokens(1 + length % 3, length, length)) for length in range(LEAST, MOST + 1) for seed in range(2)]
    futures = [tenants[seed].submit(*args) for seed, args in inputs]
    for (seed, args), future in zip(inputs, futures, strict=True):
        assert problem(pytree.tree_leaves(future.result()), results(bert(seed), args)) is None
    assert "lengths 4, 8, 16" in str(runtime.explain())
    runtime.remove("t0")
    assert problem(pytree.tree_leaves(tenants[1](*inputs[1][1])), results(bert(1), inputs[1][1])) is None


def test_requests_out_of_bounds_are_refused_and_others_go_on(runtime: spacetime.Runtime) -> None:
    tenant = runtime.add(bert(0), tokens(2, 8), "t0", dynamic=DYNAMIC)
    refused: list[tuple[tuple[Tensor, ...], str]] = [
        (tokens(1, LEAST - 1), "length 3"),
        (tokens(1, MOST + 1), "length 17"),
        ((*tokens(1, 5)[:2], torch.ones(1, 6, dtype=torch.long)), "lengths disagree"),
        (tokens(1, 5)[:2], "input 2 has no dimension 1"),
        ((torch.ones(1, 5), *tokens(1, 5)[1:]), "input 0 is torch.float32"),
    ]
    for args, message in refused:
        with pytest.raises(spacetime.InputError, match=message):
            tenant(*args)
        good = tokens(1, 5)
        assert problem(pytree.tree_leaves(tenant(*good)), results(bert(0), good)) is None


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({}, "names no dimension"),
        (8, "dynamic is 8"),
        ({"token_ids": (4, 16)}, "dynamic is {'token_ids': "),
        ({"token_ids": {1: (4.0, 16)}}, "bounds that are none"),
        ({"ids": {1: (4, 16)}}, "dynamic names input 'ids'"),
        ({"token_ids": {0: (4, 16)}}, "dimension 0"),
        ({"token_ids": {2: (4, 16)}}, "dimension 2"),
        ({"token_ids": {1: (16, 4)}}, "bounds that are none"),
        ({"token_ids": {1: 4}}, "bounds that are none"),
        ({"token_ids": {1: (4, 16)}, "mask": {1: (4, 8)}}, "two lengths vary"),
        ({7: {1: (4, 16)}}, "dynamic names input 7"),
        ("token_ids", "names no dimensions"),
        ({"token_ids": (1, 4, 16)}, "names no dimensions"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(runtime: spacetime.Runtime, dynamic: Any, message: str) -> None:
    with pytest.raises(spacetime.OptionError, match=message):
        runtime.add(bert(0), tokens(2, 8), "t0", dynamic=dynamic)
    assert runtime.tenants() == ()


def test_a_length_that_the_module_refuses_is_named(runtime: spacetime.Runtime) -> None:
    with pytest.raises(spacetime.CaptureError, match=r"length 4(.|\n)*too short for me"):
        runtime.add(Particular().eval(), example=(torch.randn(1, 8, 8),), name="p", dynamic={0: {1: (4, 16)}})
    later = runtime.add(Particular().eval(), example=(torch.randn(1, 8, 8),), name="p", dynamic={0: {1: (8, 16)}})
    assert later(torch.randn(1, 12, 8)).shape == (1, 12, 8)


def test_an_input_whose_length_was_not_declared_is_no_bad_example(runtime: spacetime.Runtime) -> None:
    with pytest.raises(spacetime.CaptureError, match=r"length 16(.|\n)*declare every input that has this length"):
        runtime.add(bert(0), tokens(2, 8), "t0", dynamic={"token_ids": {1: (4, 16)}})
    assert runtime.tenants() == ()


def test_packed_copies_are_kept_for_every_length() -> None:
    if not prepacked_conv.available():
        pytest.skip("this build of torch has no oneDNN")
    module = bert(0)
    preparer = Preparer(prepack=True)
    prepared = preparer.prepare("a", module, tokens(2, 8), exact=False, lengths=LENGTHS)
    assert isinstance(prepared.executable, LengthsExecutable)
    assert all(program.prepack for program in prepared.executable.programs.values())
