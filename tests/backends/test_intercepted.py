"""Modules that cannot be captured share launches: same results, errors where they belong, nothing leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spacetime
from spacetime.backends.executables import Call
from spacetime.backends.intercepted import InterceptedExecutable
from spacetime.backends.meeting import MetCall, meet
from spacetime.capture.selfcheck import problem
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment

pytest.importorskip("greenlet")

WIDE = 16


class DataDependent(nn.Module):
    """As many layers as the input asks for: no export can say what it does."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.again = nn.Linear(WIDE, WIDE)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.out = nn.Linear(2 * WIDE, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().sum()) % 4):
            x = torch.tanh(self.again(x))
        return self.out(self.conv(x.unsqueeze(1)).flatten(1))


class Autocast(DataDependent):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Refuses(DataDependent):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if bool((x < 0).any()):
            raise ValueError("a negative input")
        return y


def executable_of(*modules: nn.Module) -> InterceptedExecutable:
    tenants = {f"t{index}": module.eval() for index, module in enumerate(modules)}
    executable = InterceptedExecutable(tenants)
    for name, module in tenants.items():
        executable.join(name, module)
    return executable


def run(executable: InterceptedExecutable, inputs: Sequence[tuple[int, Tensor]], *, fused: bool = True) -> list[object]:
    """Results, or errors, of requests (tenant, input) in one lane."""
    views = tuple(RequestView(number, f"t{tenant}", x.shape[0], 0) for number, (tenant, x) in enumerate(inputs))
    lane = Lane("alike", views, (Segment(Partition(1, 1, 1)),), fused)
    outcomes = executable.run(lane, [Call((x,), (x,)) for _, x in inputs])
    return [outcome.value if outcome.error is None else outcome.error for outcome in outcomes]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 99)), min_size=1, max_size=6),
    st.booleans(),
)
def test_results_are_those_of_the_modules(requests: list[tuple[int, int, int]], fused: bool) -> None:
    modules = [DataDependent(seed) for seed in (0, 1, 2, 1)]  # the last has the second one's weights
    inputs = [
        (tenant, torch.randn(rows, WIDE, generator=torch.Generator().manual_seed(seed)))
        for tenant, rows, seed in requests
    ]
    with torch.no_grad():
        expected = [DataDependent((0, 1, 2, 1)[tenant]).eval()(x) for tenant, x in inputs]
    assert problem(run(executable_of(*modules), inputs, fused=fused), expected) is None


def test_calls_of_alike_modules_are_launched_together() -> None:
    executable = executable_of(*(DataDependent(seed) for seed in range(4)))
    inputs = [(tenant, torch.zeros(1, WIDE)) for tenant in range(4)]
    run(executable, inputs)
    assert executable.num_calls_saved == 3 * 3, "a layer, the convolution and the output of four tenants, in one each"
    run(executable, inputs, fused=False)
    assert executable.num_calls_saved == 9


def test_a_module_that_does_more_than_its_peers_goes_on_alone() -> None:
    executable = executable_of(DataDependent(0), DataDependent(1))
    short, long = torch.zeros(1, WIDE), torch.full((1, WIDE), 3 / WIDE)
    results = run(executable, [(0, short), (1, long)])
    with torch.no_grad():
        expected = [DataDependent(0).eval()(short), DataDependent(1).eval()(long)]
    assert problem(results, expected) is None


def test_an_error_is_that_of_its_request() -> None:
    executable = executable_of(Refuses(0), Refuses(1), Refuses(2))
    good, bad = torch.ones(1, WIDE), -torch.ones(1, WIDE)
    first, second, third = run(executable, [(0, good), (1, bad), (2, good)])
    assert isinstance(second, ValueError)
    assert isinstance(first, Tensor)
    assert isinstance(third, Tensor)


def test_a_call_that_fails_fails_where_it_was_made() -> None:
    executable = executable_of(DataDependent(0), DataDependent(1))
    wrong = torch.zeros(1, WIDE + 1)  # no linear takes it
    for failing in (0, 1):
        inputs = [(tenant, wrong if tenant == failing else torch.zeros(1, WIDE)) for tenant in range(2)]
        results = run(executable, inputs)
        assert [isinstance(result, RuntimeError) for result in results] == [failing == 0, failing == 1]


def test_a_launch_that_fails_is_made_call_by_call() -> None:
    x, weight = torch.ones(1, 2), torch.ones(3, 2)
    found: list[Tensor] = []

    def broken(calls: Sequence[MetCall]) -> Sequence[Tensor]:
        raise RuntimeError("no memory for all at once")

    meet([lambda: found.append(torch.nn.functional.linear(x, weight))] * 2, broken)
    assert [value.tolist() for value in found] == [[[2.0, 2.0, 2.0]]] * 2


def test_a_call_under_autocast_meets_nobody_and_autocast_does_not_leak() -> None:
    executable = executable_of(Autocast(0), Autocast(1))
    inputs = [(tenant, torch.ones(1, WIDE)) for tenant in range(2)]
    with torch.no_grad():
        expected = [Autocast(seed).eval()(x) for seed, x in inputs]
    assert problem(run(executable, inputs), expected) is None
    assert executable.num_calls_saved == 0
    assert not torch.is_autocast_enabled("cpu")


def test_results_do_not_show_other_tenants_rows() -> None:
    results = run(executable_of(DataDependent(0), DataDependent(1)), [(t, torch.ones(1, WIDE)) for t in range(2)])
    for result in results:
        assert isinstance(result, Tensor)
        assert result.untyped_storage().nbytes() == result.nbytes


def test_weights_are_views_while_a_tenant_and_its_own_afterwards() -> None:
    module, peer = DataDependent(0), DataDependent(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    executable = executable_of(module, peer)
    assert module.again.weight.untyped_storage().data_ptr() == peer.again.weight.untyped_storage().data_ptr()
    executable.arena.leave("t0")
    assert module.again.weight.untyped_storage().data_ptr() != peer.again.weight.untyped_storage().data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_many_join_and_everybodys_weights_move_along() -> None:
    executable = executable_of(*(DataDependent(seed) for seed in range(20)))  # more than a slab has room for at first
    inputs = [(tenant, torch.full((1, WIDE), tenant / 7)) for tenant in range(20)]
    with torch.no_grad():
        expected = [DataDependent(seed).eval()(x) for seed, x in inputs]
    assert problem(run(executable, inputs), expected) is None


# -- through the runtime ----------------------------------------------------------------------------------


@pytest.fixture
def runtime() -> Iterator[spacetime.Runtime]:
    with spacetime.Runtime(device="cpu", intercept=True) as rt:
        yield rt


def test_tenants_are_served_removed_and_explained(runtime: spacetime.Runtime) -> None:
    example = (torch.ones(2, WIDE),)
    tenants = [runtime.add(DataDependent(seed).eval(), example, f"t{seed}") for seed in range(3)]
    opaque = runtime.explain().opaque
    assert [report.meets for report in opaque] == [("t1", "t2"), ("t0", "t2"), ("t0", "t1")]
    for _ in range(20):
        futures: list[Future[Tensor]] = [tenant.submit(torch.ones(1, WIDE)) for tenant in tenants]
        results = [future.result() for future in futures]
    with torch.no_grad():
        expected = [DataDependent(seed).eval()(torch.ones(1, WIDE)) for seed in range(3)]
    assert problem(results, expected) is None
    assert "its calls meet those of t1, t2" in str(runtime.explain())
    runtime.remove("t1")
    assert problem([tenants[0](torch.ones(1, WIDE))], expected[:1]) is None


def test_exact_tenants_and_other_structures_meet_nobody(runtime: spacetime.Runtime) -> None:
    example = (torch.ones(2, WIDE),)
    runtime.add(DataDependent(0).eval(), example, "first")
    runtime.add(DataDependent(1).eval(), example, "exact", exact=True)
    runtime.add(Refuses(1).eval(), example, "other")
    assert {report.tenant: report.meets for report in runtime.explain().opaque} == {
        "first": (),
        "exact": (),
        "other": (),
    }


def test_without_the_option_modules_run_alone() -> None:
    with spacetime.Runtime(device="cpu") as rt:
        for seed in range(2):
            rt.add(DataDependent(seed).eval(), (torch.ones(2, WIDE),), f"t{seed}")
        assert [report.meets for report in rt.explain().opaque] == [(), ()]


def test_the_option_without_greenlet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real: Callable[..., object] = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name == "greenlet":
            raise ImportError("No module named 'greenlet'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(spacetime.SpacetimeError, match=r"spacetime-gpu\[intercept\]"):
        spacetime.Runtime(device="cpu", intercept=True)
