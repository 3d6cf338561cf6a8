"""Merged lanes: every tenant's results are its own module's, whatever is launched with whom."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.errors import RejectedError
from tests.capture.merging import (
    Request,
    aligned,
    captured_executable,
    merged_of,
    run,
    trouble,
    zoo_executable,
    zoo_inputs,
    zoo_modules,
)
from tests.capture.sketches import Part, draw, sketch
from tests.capture.tenants import weights_of
from tests.slow import mostly

# Cheap to capture and to run, and of all kinds: products, lookups, attention, recurrences, several inputs.
CHEAP = ("mlp", "gru_cell", "lstm_cell", "recommender", "tied_lm", "bert", "vit")
LARGER = (("resnet18", "resnet34"), ("vgg16", "vgg19"), ("unet", "mobilenet_v2", "bert"))


def check_zoo(executable: MergedExecutable, requests: list[Request]) -> None:
    outcomes = run(executable, requests)
    assert executable.fault == ""
    for (name, args), outcome in zip(requests, outcomes, strict=True):
        module = zoo_modules(name.partition(".")[0])[name]
        assert trouble(module, args, outcome, zoo_inputs(name, 4, 99)) is None, name


@st.composite
def zoo_requests(draw: st.DrawFn, members: tuple[str, ...], most: int = 3) -> list[Request]:
    """Tenants of some members, several requests of one among them, each with one to three rows."""
    names = st.sampled_from([tenant for member in members for tenant in zoo_modules(member)])
    picked = draw(st.lists(st.tuples(names, st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=most))
    return [(name, zoo_inputs(name, rows, seed)) for name, rows, seed in picked]


@settings(max_examples=20)
@given(st.data())
def test_random_merges_of_small_programs_keep_the_contract(data: st.DataObject) -> None:
    members = tuple(data.draw(st.lists(st.sampled_from(CHEAP), min_size=2, max_size=3, unique=True)))
    random = data.draw(st.randoms(use_true_random=False))
    check_zoo(merged_of(random, *map(zoo_executable, members)), data.draw(zoo_requests(members, most=6)))


@pytest.mark.parametrize("members", mostly(LARGER, slow=LARGER[:2]), ids="+".join)
def test_aligned_large_programs_keep_the_contract(members: tuple[str, ...]) -> None:
    executable = aligned(*map(zoo_executable, members))
    names = [tenant for member in members for tenant in list(zoo_modules(member))[:2]]
    check_zoo(executable, [(name, zoo_inputs(name, 1 + seed % 2, seed)) for seed, name in enumerate(names)])
    schedule = executable.schedule
    assert schedule.num_launches < schedule.num_alone


# -- programs in which one thing differs ----------------------------------------------------------------


def conv_norm(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x))


def conv_norm_relu(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.norm(m.conv(x)))


def conv_relu6(m: Any, x: Tensor) -> Tensor:
    return F.relu6(m.conv(x))


def conv() -> nn.Module:
    return nn.Conv2d(3, 4, 3, padding=1)


def norm() -> nn.Module:
    return nn.BatchNorm2d(4)


def linear() -> nn.Module:
    return nn.Linear(8, 8)


def narrow() -> nn.Module:
    return nn.Linear(8, 5)


def fills(width: int) -> Callable[[Any, Tensor], Tensor]:
    """zeros(rows, width): equal kernel keys whatever the width."""
    return lambda m, x: torch.cat([m.a(x), x.new_zeros(x.shape[0], width)], 1)


def last_token(m: Any, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return hidden[torch.arange(x.shape[0]), (x[..., 0] > 0).sum(1).clamp(max=5)]


def last_token_doubled(m: Any, x: Tensor) -> Tensor:
    return 2 * last_token(m, x)


def masked(scale: float) -> Callable[[Any, Tensor], Tensor]:
    """A constant of the code: equal shapes, other content."""
    return lambda m, x: m.a(x) * torch.full((8,), scale)


Body = Callable[..., Any]
A: dict[str, Part] = {"a": linear}
CONV: dict[str, Part] = {"conv": conv, "norm": norm}
STEPS: dict[str, Part] = {"a": linear, "n": lambda: nn.LayerNorm(8)}
SIBLINGS: dict[str, Part] = {"a": linear, "b": linear}

# A row's shape, two bodies, and their parts: of both, or of each.
PAIRS: dict[str, tuple[tuple[int, ...], Body, Body, dict[str, Part], dict[str, Part]]] = {
    "epilogues": ((3, 4, 4), conv_norm, conv_norm_relu, CONV, CONV),
    "norm or bias": ((3, 4, 4), conv_relu6, conv_norm_relu, {"conv": conv}, CONV),
    "norm alone": ((4, 3, 3), lambda m, x: m.norm(x), lambda m, x: m.norm(x) + 1, {"norm": norm}, {"norm": norm}),
    "widths": ((8,), lambda m, x: m.a(x), lambda m, x: torch.relu(m.a(x)), A, {"a": narrow}),
    "siblings": ((8,), lambda m, x: m.a(x) + m.b(x), lambda m, x: m.a(x) * m.b(x), SIBLINGS, SIBLINGS),
    "steps first": (
        (6, 8),
        lambda m, x: m.n(m.a(x.transpose(0, 1))),
        lambda m, x: m.n(m.a(x.transpose(0, 1))).transpose(0, 1),
        STEPS,
        STEPS,
    ),
    "numbers of rows": ((8,), fills(3), fills(2), A, A),
    "positions of rows": ((6, 8), last_token, last_token_doubled, A, A),
    "constants": ((8,), masked(2.0), masked(3.0), A, A),
    "weights by row": (
        (6, 8),
        lambda m, x: x * m.a.bias + m.a(x).softmax(-1),
        lambda m, x: (x * m.a.bias).exp() - m.a(x).softmax(-1),
        A,
        A,
    ),
    "several results": ((8,), lambda m, x: m.a(x).topk(2)[0], lambda m, x: list(m.a(x).topk(2)), A, A),
    "an output that is an input": ((8,), lambda m, x: (x, m.a(x)), lambda m, x: m.a(x), A, A),
    "no slot form": (
        (8, 4, 4),
        lambda m, x: m.t(x),
        lambda m, x: torch.relu(m.t(x)),
        {"t": lambda: nn.ConvTranspose2d(8, 3, 2)},
        {"t": lambda: nn.ConvTranspose2d(8, 3, 2)},
    ),
}


def pair(key: str) -> tuple[dict[str, nn.Module], list[CohortExecutable], Callable[[int, int], tuple[Tensor, ...]]]:
    """Two cohorts, the first with tenants a and b, the second with c."""
    shape, one, other, parts, other_parts = PAIRS[key]
    first = {name: sketch(one, parts, seed) for seed, name in enumerate("ab")}
    second = {"c": sketch(other, other_parts, 2)}
    inputs = draw((shape,), 2, seed=0)
    executables = [captured_executable(inputs, **modules) for modules in (first, second)]
    return first | second, executables, lambda rows, seed: draw((shape,), rows, seed)


@pytest.mark.parametrize("key", PAIRS)
def test_what_looks_alike_stays_each_program_s_own(key: str) -> None:
    modules, executables, inputs = pair(key)
    requests = [("a", inputs(2, 1)), ("c", inputs(1, 2)), ("b", inputs(3, 3)), ("c", inputs(2, 4)), ("a", inputs(1, 5))]
    for merged in (aligned(*executables), *(merged_of(Random(seed), *executables) for seed in range(3))):
        for chosen in (requests, requests[:2], requests[1:3], requests[3:4]):
            outcomes = run(merged, chosen)
            assert merged.fault == ""
            for (name, args), outcome in zip(chosen, outcomes, strict=True):
                assert trouble(modules[name], args, outcome, inputs(8, 9)) is None


def test_results_share_no_memory() -> None:
    _, executables, inputs = pair("an output that is an input")
    requests = [("a", inputs(2, 1)), ("c", inputs(2, 2))]
    first, second = run(aligned(*executables), requests)
    pointers = {first.value[0].untyped_storage().data_ptr(), first.value[1].untyped_storage().data_ptr()}
    pointers |= {second.value.untyped_storage().data_ptr(), requests[0][1][0].untyped_storage().data_ptr()}
    assert len(pointers) == 4
    assert second.value.untyped_storage().nbytes() == second.value.nbytes


# -- failures -------------------------------------------------------------------------------------------


def lookup_pair() -> tuple[dict[str, nn.Module], MergedExecutable]:
    """An embedding raises for a token it does not know."""
    parts: dict[str, Part] = {"a": linear, "e": lambda: nn.Embedding(6, 8)}
    modules = {
        "a": sketch(lambda m, x: m.a(m.e(x)), parts, 0),
        "b": sketch(lambda m, x: torch.relu(m.a(m.e(x))), parts, 1),
    }
    tokens = draw((6,), 2, seed=0)
    return modules, aligned(*(captured_executable(tokens, **{name: module}) for name, module in modules.items()))


def test_a_failing_member_fails_alone() -> None:
    modules, merged = lookup_pair()
    good, bad = (torch.tensor([[5, 0, 1]]),), (torch.tensor([[6, 0, 1]]),)
    outcomes = run(merged, [("a", good), ("b", bad), ("b", good), ("a", good)])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1].error, IndexError)
    for index, name in ((0, "a"), (2, "b"), (3, "a")):
        assert trouble(modules[name], good, outcomes[index], good) is None
    assert merged.fault == "", "it was the request's fault"


def test_a_fault_of_the_merged_program_itself_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, merged = lookup_pair()
    good = (torch.tensor([[5, 0, 1]]),)

    def broken(*_: Any) -> Any:
        raise ArithmeticError("planted")

    monkeypatch.setattr(merged._code, "run", broken)
    outcomes = run(merged, [("a", good), ("b", good)])
    for name, outcome in zip("ab", outcomes, strict=True):
        assert trouble(modules[name], good, outcome, good) is None
    assert merged.fault == "ArithmeticError: planted"


def test_a_tenant_that_was_removed_gets_its_error_and_nobody_else() -> None:
    modules, executables, inputs = pair("siblings")
    merged = aligned(*executables)
    executables[0].cohort.leave("b")
    outcomes = run(merged, [("b", inputs(1, 0)), ("a", inputs(2, 1)), ("c", inputs(1, 2))])
    assert isinstance(outcomes[0].error, RejectedError) and "'b' was removed" in str(outcomes[0].error)
    for name, outcome, args in (("a", outcomes[1], inputs(2, 1)), ("c", outcomes[2], inputs(1, 2))):
        assert trouble(modules[name], args, outcome, inputs(8, 9)) is None


def test_plain_lanes_run_the_modules() -> None:
    modules, executables, inputs = pair("widths")
    requests = [("a", inputs(2, 1)), ("c", inputs(1, 2))]
    outcomes = run(aligned(*executables), requests, fused=False)
    for (name, args), outcome in zip(requests, outcomes, strict=True):
        with torch.no_grad():
            assert torch.equal(outcome.value, modules[name](*args))


def test_the_check_names_who_deviates(monkeypatch: pytest.MonkeyPatch) -> None:
    _, executables, inputs = pair("siblings")
    merged = aligned(*executables)
    calls = {name: Call(args, args) for seed, name in enumerate("abc") for args in [inputs(2, seed)]}
    assert merged.check(calls) == {}
    monkeypatch.setattr(executables[1], "flat_outputs", lambda name, tensors: [torch.zeros(2, 8)])
    assert merged.check(calls).keys() == {"c"}
    rest = merged.without(merged.members.index(executables[1]))
    assert rest.members == (executables[0],)
    outcomes = run(rest, [("a", inputs(1, 1)), ("c", inputs(1, 1))])
    assert outcomes[0].error is None and isinstance(outcomes[1].error, RejectedError)


def test_slabs_that_grow_and_tenants_that_come_and_go_are_seen() -> None:
    """The same slots with other weights, between two lanes of one mix; at first two programs have equal weights."""
    _, one, other, parts, _ = PAIRS["siblings"]
    modules = {name: sketch(one, parts, seed) for seed, name in enumerate("ab")} | {"c": sketch(other, parts, 2)}
    modules["c"].load_state_dict(modules["b"].state_dict())
    example = draw(((8,),), 2, seed=0)
    executable = captured_executable(example, a=modules["a"], b=modules["b"])
    merged = aligned(executable, captured_executable(example, c=modules["c"]))
    requests = [(name, draw(((8,),), rows, rows)) for name, rows in (("a", 2), ("b", 1), ("c", 3))]

    def check() -> None:
        for (name, args), outcome in zip(requests, run(merged, requests), strict=True):
            assert trouble(modules[name], args, outcome, draw(((8,),), 8, 9)) is None

    check()
    executable.cohort.leave("b")
    for seed in range(12):
        name = "b" if seed == 0 else f"more{seed}"
        modules[name] = sketch(one, SIBLINGS, 20 + seed)
        executable.join(name, weights_of(executable.cohort.captured, modules[name]))
    merged.joined()
    check()


def test_rows_come_back_in_order_when_weights_are_shared_across_others() -> None:
    """Slots 0 and 2 of one program, and the other program, have the same convolution; slot 1 has its own."""
    shape, one, other, parts, _ = PAIRS["epilogues"]
    modules = {name: sketch(one, parts, seed) for seed, name in enumerate("abc")} | {"d": sketch(other, parts, 3)}
    for name in "cd":
        modules[name].conv.load_state_dict(modules["a"].conv.state_dict())
    example = draw((shape,), 2, seed=0)
    merged = aligned(
        captured_executable(example, **{name: modules[name] for name in "abc"}),
        captured_executable(example, d=modules["d"]),
    )
    requests = [(name, draw((shape,), 1, seed)) for seed, name in enumerate("abcd")]
    for (name, args), outcome in zip(requests, run(merged, requests), strict=True):
        assert trouble(modules[name], args, outcome, draw((shape,), 8, 9)) is None
