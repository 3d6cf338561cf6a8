"""Policies by name."""

from __future__ import annotations

import pytest

from spacetime.errors import OptionError
from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import get_policy, policy, policy_name, policy_names


def nothing(snapshot: Snapshot, costs: CostModel) -> Plan:
    return Plan()


def test_shipped_policies_are_registered() -> None:
    assert {"time_slice", "streams", "space_time"} <= set(policy_names())
    for name in policy_names():
        assert policy_name(get_policy(name)) == name


def test_a_function_is_taken_as_it_is() -> None:
    assert get_policy(nothing) is nothing
    assert policy_name(nothing) == "nothing"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=f"'fifo' does not exist\n  known: {', '.join(policy_names())}"):
        get_policy("fifo")
    assert {"space_time", "static", "streams", "time_slice"} <= set(policy_names())


def test_a_name_is_given_once() -> None:
    before = get_policy("streams")
    with pytest.raises(OptionError, match="'streams' exists already"):
        policy("streams")(nothing)
    assert get_policy("streams") is before
