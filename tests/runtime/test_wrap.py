"""wrap(): a module whose forward goes through a runtime."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import spacetime as st
from spacetime.zoo import build, example
from tests.runtime.models import EXAMPLE, X, assert_equal, assert_three_parts, plain, tiny


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime() as made:
        yield made


@pytest.mark.parametrize("name", ["mlp", "gru_cell", "recommender", "tied_lm"])
def test_results_are_those_of_the_module(rt: st.Runtime, name: str) -> None:
    module, args = build(name), example(name, rows=3, seed=1)
    expected = plain(module, *args)
    drop_in = st.wrap(module, runtime=rt, example=example(name), name=name, slo_ms=5.0)
    assert_equal(drop_in(*args), expected)
    assert rt.stats()[name]["completed"] == 1


def test_it_is_a_module_with_the_same_weights(rt: st.Runtime) -> None:
    module = tiny()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    drop_in = st.wrap(module, runtime=rt, example=EXAMPLE, name="t")
    assert isinstance(drop_in, nn.Module) and not drop_in.training
    assert drop_in.module is module and drop_in.eval() is drop_in
    state = drop_in.state_dict()
    assert state.keys() == {f"module.{key}" for key in before}
    assert all(torch.equal(state[f"module.{key}"], tensor) for key, tensor in before.items())
    assert list(drop_in.parameters()) == list(module.parameters())


def test_it_works_inside_another_module(rt: st.Runtime) -> None:
    inner = tiny()
    outer = nn.Sequential(nn.Linear(4, 4), inner, nn.Softmax(-1)).eval()
    expected = plain(outer, X)
    outer[1] = st.wrap(inner, runtime=rt, example=EXAMPLE, name="inner")
    assert_equal(plain(outer.eval(), X), expected)


def test_compiled_code_may_call_it(rt: st.Runtime) -> None:
    """What torch.compile would make of the runtime's own loop, in the middle of it, is no good."""
    inner = tiny()
    expected = plain(nn.Sequential(inner, nn.Softmax(-1)), X)
    outer = nn.Sequential(st.wrap(inner, runtime=rt, example=EXAMPLE, name="inner"), nn.Softmax(-1)).eval()
    compiled = torch.compile(outer, backend="eager")
    for _ in range(3):
        assert_equal(plain(compiled, X), expected)
    assert rt.stats()["inner"]["completed"] == 3


def test_it_cannot_be_trained(rt: st.Runtime) -> None:
    outer = nn.Sequential(st.wrap(tiny(), runtime=rt, example=EXAMPLE, name="t"), nn.Linear(3, 3)).eval()
    with pytest.raises(st.CaptureError) as caught:
        outer.train()
    assert_three_parts(caught.value, "tenant 't' cannot be put in training mode", "inference", "remove('t')")
    assert not any(part.training for part in outer[0].modules())


@pytest.mark.parametrize("copy_of", [copy.deepcopy, pickle.dumps])
def test_handles_are_of_one_process_and_modules_can_be_copied(rt: st.Runtime, copy_of: Callable[[Any], Any]) -> None:
    module = tiny()
    drop_in = st.wrap(module, runtime=rt, example=EXAMPLE, name="t", exact=True)
    for handle in (drop_in, drop_in.tenant):
        with pytest.raises(st.CaptureError) as caught:
            copy_of(handle)
        assert_three_parts(caught.value, "tenant 't' cannot be pickled", "belongs to one process", "`module`")
    copy_of(module)
    assert copy.copy(drop_in.tenant) is drop_in.tenant


def test_a_tenant_cannot_contain_a_tenant(rt: st.Runtime) -> None:
    """Its lane would wait for a lane that may have to wait for it."""
    outer = nn.Sequential(st.wrap(tiny(), runtime=rt, example=EXAMPLE, name="inner")).eval()
    with pytest.raises(st.CaptureError) as caught:
        rt.add(outer, EXAMPLE, "outer")
    assert_three_parts(caught.value, "'outer': 0 is tenant 'inner'", "wait for another lane", "plain module")
    assert rt.tenants() == ("inner",)


def test_what_add_refuses_wrap_refuses(rt: st.Runtime) -> None:
    with pytest.raises(st.CaptureError, match="training mode"):
        st.wrap(tiny().train(), runtime=rt, example=EXAMPLE, name="t")
    with pytest.raises(TypeError, match="colour"):
        st.wrap(tiny(), runtime=rt, example=EXAMPLE, name="t", colour="red")
