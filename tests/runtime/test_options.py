"""Options of Runtime() and add(): what is wrong is said in the user's words, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from tests.runtime.models import EXAMPLE, X, assert_equal, assert_three_parts, plain, tiny


@pytest.fixture(scope="module")
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(device="cpu") as made:
        yield made


WRONG: dict[str, tuple[str, list[Any]]] = {
    "slo_ms": ("a number of milliseconds, 0.001 or more", [0, -1, 0.0001, "20", inf, nan, [5]]),
    "timeout_ms": ("a number of milliseconds, 0.001 or more", [0, -0.5, "20", inf, nan]),
    "weight": ("a positive number", [0, -1.0, "heavy", inf, nan, None]),
    "max_queue": ("a positive whole number", [0, -1, 1.5, "64", nan]),
    "priority": ("a whole number", ["high", 0.5, nan, None]),
    "exact": ("True or False", ["no", None, 1]),
}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [(option, value, expected) for option, (expected, values) in WRONG.items() for value in values],
)
def test_options_out_of_range(rt: st.Runtime, option: str, value: Any, expected: str) -> None:
    """In the user's unit, and before any work."""
    with pytest.raises(st.OptionError) as caught:
        rt.add(Untouchable().eval(), EXAMPLE, "bad", **{option: value})
    assert_three_parts(caught.value, f"{option} is {value!r}", f"must be {expected}", "leave it out")
    assert rt.tenants() == ()


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pytest.fail("the options are wrong: there was no reason to call it")


def test_numbers_of_other_kinds_are_numbers(rt: st.Runtime) -> None:
    tenant = rt.add(tiny(), EXAMPLE, "t", slo_ms=np.float32(1e4), weight=2, max_queue=np.int64(9), priority=np.int8(-1))
    assert_equal(tenant(X), plain(tiny(), X))


@pytest.mark.parametrize("option", ["prepack", "intercept", "merge"])
def test_flags_of_the_runtime_are_flags(option: str) -> None:
    with pytest.raises(st.OptionError) as caught:
        st.Runtime(**{option: "no"})  # type: ignore[arg-type]
    assert_three_parts(caught.value, f"{option} is 'no'", "True or False", "leave it out")


def test_what_the_runtime_is_made_of() -> None:
    with pytest.raises(st.OptionError) as caught:
        st.Runtime(device=0)  # type: ignore[arg-type]
    assert_three_parts(caught.value, "device is 0", "named by a string", '"cuda:0"')
    with pytest.raises(st.OptionError) as caught:
        st.Runtime(profile="profiles/cpu.json")  # type: ignore[arg-type]
    assert_three_parts(caught.value, "profile is 'profiles/cpu.json'", "a str", "st.Profile.load()")
    with pytest.raises(st.OptionError, match="policy None does not exist"):
        st.Runtime(policy=None)  # type: ignore[arg-type]
    with st.Runtime(device=torch.device("cpu")) as rt:
        assert_equal(rt.add(tiny(), EXAMPLE, "t")(X), plain(tiny(), X))


@pytest.mark.parametrize("record", ["no", -1, 2.5, None])
def test_how_much_is_recorded_is_a_number_or_a_flag(record: Any) -> None:
    with pytest.raises(st.OptionError, match="how many entries to keep"):
        st.Runtime("cpu", record=record)
