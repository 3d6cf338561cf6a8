"""Every value survives JSON unchanged, and a file that does not fit fails with the name of the field."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Capabilities, Device, Partition
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.plan import Lane, Load, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.trace import LaneEvent, Trace
from spacetime.values import Value, decode
from spacetime.workload import Arrival, Workload

VALUES = [
    Arrival,
    Capabilities,
    Device,
    Kernel,
    Lane,
    LaneEvent,
    Partition,
    Plan,
    Program,
    RequestView,
    Rows,
    Segment,
    Snapshot,
    TenantView,
    TensorSpec,
    Trace,
    Workload,
]

# Values are built from their annotations alone, so a new field is covered as soon as it exists.
st.register_type_strategy(float, st.floats(allow_nan=False))


def values_of(kind: type[Value]) -> st.SearchStrategy[Value]:
    return st.from_type(kind)


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=30)
@given(data=st.data())
def test_json_round_trip_is_exact(kind: type[Value], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    again = kind.from_json(value.to_json())
    assert again == value
    assert again.to_json() == value.to_json()


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_frozen(kind: type[Value]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen


MADE_QUICKLY = [Partition, RequestView, TenantView, Load, Segment, Lane, Plan, Snapshot, LaneEvent]


@pytest.mark.parametrize("kind", MADE_QUICKLY)
@settings(max_examples=10)
@given(data=st.data())
def test_values_that_are_made_quickly_are_as_dataclasses_makes_them(kind: type[Value], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    names = [field.name for field in dataclasses.fields(kind)]
    assert type(value) is kind
    assert kind(*[getattr(value, name) for name in names]) == value, "by position"
    for again in (dataclasses.replace(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(again) is kind and again == value and hash(again) == hash(value) and repr(again) == repr(value)
    for name in (names[0], "unknown"):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            setattr(value, name, 1)
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("kind", MADE_QUICKLY)
def test_values_that_are_made_quickly_take_the_arguments_of_their_fields(kind: type[Value]) -> None:
    parameters = list(inspect.signature(kind).parameters.values())
    fields = dataclasses.fields(kind)
    assert [each.name for each in parameters] == [field.name for field in fields]
    for parameter, field in zip(parameters, fields, strict=True):
        given_default = None if field.default is dataclasses.MISSING else field.default
        assert (None if parameter.default is parameter.empty else parameter.default) == given_default
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        kind(colour="red")


def test_values_that_are_made_quickly_have_no_subclasses() -> None:
    with pytest.raises(TypeError, match="Lane has no subclasses"):
        type("Wider", (Lane,), {})


PARTITION = json.loads(Partition(3, 2, 2).to_json())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"colour": "red"}, r"unknown: \['colour'\]"),
        ({"atoms": None}, "Partition.atoms: expected int, found NoneType"),
        ({"atoms": "3"}, "Partition.atoms: expected int, found str"),
        ({"atoms": True}, "Partition.atoms: expected int, found bool"),
        ({"atoms": 3.0}, "Partition.atoms: expected int, found float"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        Partition.from_json(json.dumps(PARTITION | change))


def test_missing_fields_and_other_shapes_are_named() -> None:
    with pytest.raises(OptionError, match=r"missing: \['granted_units'\]"):
        Partition.from_json('{"atoms": 1, "asked_units": 1}')
    with pytest.raises(OptionError, match="Partition: expected an object, found list"):
        Partition.from_json("[]")
    with pytest.raises(OptionError, match=r"Workload.arrivals\[0\].tenant: expected str, found int"):
        Workload.from_json('{"arrivals": [{"at_us": 0, "tenant": 5, "rows": 1}], "residents": [], "outstanding": null}')
    with pytest.raises(OptionError, match=r"Plan.lanes: expected a list, found dict"):
        Plan.from_json('{"lanes": {}, "wake_at_us": null, "isolated": true, "resizes": []}')
    with pytest.raises(OptionError, match=r"Plan.wake_at_us: no alternative fits"):
        Plan.from_json('{"lanes": [], "wake_at_us": "soon", "isolated": true, "resizes": []}')


def test_integers_stand_for_floats() -> None:
    device = json.loads(Device("a", "cpu", 2).to_json()) | {"launch_us": 5}
    launch_us = Device.from_json(json.dumps(device)).launch_us
    assert launch_us == 5.0 and isinstance(launch_us, float)


def test_every_item_of_a_list_is_looked_at() -> None:
    assert repr(decode(tuple[float, ...], [1.5, 2, 3.5])) == "(1.5, 2.0, 3.5)"
    assert repr(decode(tuple[float, ...], [1, 2])) == "(1.0, 2.0)"
    assert decode(tuple[int, ...], []) == ()
    with pytest.raises(OptionError, match=r"\[1\]: expected int, found bool"):
        decode(tuple[int, ...], [1, True])
    with pytest.raises(OptionError, match=r"\[2\]: expected float, found str"):
        decode(tuple[float, ...], [1.5, 2.5, "3.5"])


def test_text_that_is_no_json_is_shown_shortened() -> None:
    with pytest.raises(OptionError, match=r"this is no JSON\n.*it begins with '\{x+\.\.\.\n  pass what to_json"):
        Partition.from_json("{" + "x" * 1000)
