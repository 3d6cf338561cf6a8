"""remove(): the module is handed back as it came, and the name is free."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.runtime.options import no_tenant
from spacetime.zoo import build, example
from tests.capture.tenants import lies_in
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, X, assert_equal, assert_three_parts, plain, tiny


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(policy="time_slice") as made:
        yield made


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def slabs_of(rt: st.Runtime, module: nn.Module) -> set[int]:
    """Those that hold its weights, by address."""
    stacks = [layer.stack for executable in rt._preparer.cohorts.values() for layer in executable.cohort.layers]
    return {stack.data_ptr() for stack in stacks for tensor in module.parameters() if lies_in(tensor, stack)}


def saved(state: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["mlp", "gru_cell", "recommender", "tied_lm"])
def test_weights_are_handed_back_bit_for_bit(rt: st.Runtime, name: str) -> None:
    modules = [build(name, seed=seed) for seed in range(3)]
    before = [copy_of(module) for module in modules]
    args = example(name, rows=2, seed=5)
    for index, module in enumerate(modules):
        rt.add(module, example(name), f"t{index}")(*args)
    stored = [slabs_of(rt, module) for module in modules]
    assert stored[0] and stored[0] == stored[1] == stored[2], "as tenants they live in the same slabs"
    rt.remove("t1")
    assert not slabs_of(rt, modules[1]) and slabs_of(rt, modules[0]) == stored[0]
    for module, weights in zip(modules, before, strict=True):
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, weights[key]) and tensor.stride() == weights[key].stride(), key
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.zero_()  # it is its owner's again: nobody else sees this
    for module, weights in ((modules[0], before[0]), (modules[2], before[2])):
        assert all(torch.equal(tensor, weights[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("write", [pickle.dumps, saved])
def test_who_saves_a_tenant_saves_its_weights_only(rt: st.Runtime, write: Callable[[Any], bytes]) -> None:
    module, alone = build("mlp"), build("mlp")
    for seed in range(9):  # the slabs grow once
        rt.add(module if seed == 0 else build("mlp", seed=seed), example("mlp"), f"t{seed}")
    written = write(module.state_dict())
    assert len(written) <= len(write(alone.state_dict())) + 1000, "not those of the others"
    assert slabs_of(rt, module), "which share its slabs"
    rt.remove("t0")
    assert all(torch.equal(tensor, module.state_dict()[key]) for key, tensor in alone.state_dict().items())


def test_a_module_is_usable_while_it_is_a_tenant_and_after(rt: st.Runtime) -> None:
    modules = [tiny(seed) for seed in range(3)]
    expected = [plain(module, X) for module in modules]
    for index, module in enumerate(modules):
        rt.add(module, EXAMPLE, f"t{index}")
    for module, reference in zip(modules, expected, strict=True):
        assert torch.equal(plain(module, X), reference)
    for index in range(3):
        rt.remove(f"t{index}")
    for module, reference in zip(modules, expected, strict=True):
        assert torch.equal(plain(module, X), reference)
    loss = modules[0](X).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in modules[0].parameters()), "and it can be trained"


def test_tied_weights_stay_tied(rt: st.Runtime) -> None:
    module = build("tied_lm")
    rt.add(module, example("tied_lm"), "tied")
    rt.remove("tied")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    assert parameters["head.weight"] is parameters["tokens.weight"]


def test_the_handle_ends_and_the_name_is_free(rt: st.Runtime) -> None:
    first, second = tiny(0), tiny(1)
    expected = plain(second, X)
    old = rt.add(first, EXAMPLE, "name")
    rt.remove("name")
    for again in (False, True):
        if again:
            new = rt.add(second, EXAMPLE, "name")
        with pytest.raises(st.RejectedError) as caught:
            old(X)
        assert_three_parts(caught.value, "tenant 'name' was removed", "no longer valid", "add it again")
    assert_equal(new(X), expected)


def test_an_unknown_name(rt: st.Runtime) -> None:
    rt.add(tiny(), EXAMPLE, "known")
    rt.add(tiny(1), EXAMPLE, "other")
    for name in ("unknown", ""):
        with pytest.raises(st.OptionError) as caught:
            rt.remove(name)
        assert_three_parts(caught.value, f"tenant {name!r} does not exist", "known: known, other", "one of these")


def test_of_many_tenants_an_error_names_those_that_are_most_alike() -> None:
    error = no_tenant("cats-7", [f"dogs-{index}" for index in range(60)] + ["cats-17"])
    assert_three_parts(error, "tenant 'cats-7' does not exist", "known: cats-17, ", "name one of these")
    assert error.facts.endswith(", and 53 more")


def test_what_waits_is_rejected_and_what_runs_ends(rt: st.Runtime) -> None:
    gate, module = Gate(), tiny()
    expected = plain(module, X)
    blocker, leaving, staying = (
        rt.add(gate, EXAMPLE, "gate"),
        rt.add(tiny(1), EXAMPLE, "leaving"),
        rt.add(module, EXAMPLE, "staying"),
    )
    gate.close()
    running = blocker.submit(X)
    assert gate.entered.wait(PATIENCE_S)
    waiting, kept = [leaving.submit(X) for _ in range(3)], staying.submit(X)
    rt.remove("leaving")
    for future in waiting:
        error = future.exception(PATIENCE_S)
        assert error is not None
        assert_three_parts(error, "tenant 'leaving' was removed", "had not started", "add the tenant again")
    remover = threading.Thread(target=rt.remove, args=("gate",))
    remover.start()
    assert not running.done()
    gate.open()
    remover.join(PATIENCE_S)
    assert not remover.is_alive() and torch.equal(running.result(0), X + 1)
    assert_equal(kept.result(PATIENCE_S), expected)
    assert rt.tenants() == ("staying",) and rt.stats().keys() == {"staying"}


def test_the_last_member_takes_its_cohort_along(rt: st.Runtime) -> None:
    rt.add(tiny(), EXAMPLE, "only")
    rt.remove("only")
    assert rt.explain().cohorts == ()
    module = tiny(1)
    expected = plain(module, X)
    assert_equal(rt.add(module, EXAMPLE, "next")(X), expected)


def test_a_module_may_move_to_another_runtime() -> None:
    module = tiny()
    expected = plain(module, X)
    for _ in range(2):
        with st.Runtime() as rt:
            assert_equal(rt.add(module, EXAMPLE, "t")(X), expected)
    assert torch.equal(plain(module, X), expected)


@pytest.mark.parametrize("policy", ["space_time", "time_slice"])
def test_who_stays_is_served_while_the_memory_of_those_who_leave_is_given_back(policy: str) -> None:
    """A cohort that most have left moves into fresh memory under the lanes that read it."""
    staying, leaving = tiny(99), [tiny(seed) for seed in range(24)]
    expected = plain(staying, X)
    done = threading.Event()
    wrong: list[Tensor] = []

    def call() -> None:
        while not done.is_set():
            got = handle.submit(X).result(PATIENCE_S)
            if not torch.allclose(got, expected, rtol=1e-5, atol=1e-6):
                wrong.append(got)

    with st.Runtime(policy=policy) as rt:
        handles = [rt.add(module, EXAMPLE, f"t{index}") for index, module in enumerate(leaving)]
        handle = rt.add(staying, EXAMPLE, "staying")
        caller = threading.Thread(target=call)
        caller.start()
        try:
            before = slabs_of(rt, staying)
            for other in handles:
                other(X)
                rt.remove(other.name)
            assert not before & slabs_of(rt, staying), "the memory of all of them is gone"
        finally:
            done.set()
            caller.join(PATIENCE_S)
        assert_equal(handle(X), expected)
    assert not wrong
