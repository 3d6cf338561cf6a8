"""JSON for frozen values, and making them quickly. Bottom layer; ir, device, workload, plan and trace import it.

`Value` gives a frozen dataclass `to_json()` and `from_json()`. Field annotations drive the decoding, so
a file from another version fails with the name of the field instead of loading half of it.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Self, TypeVar, Union, get_args, get_origin

from spacetime.errors import OptionError

T = TypeVar("T")

MOST_SHOWN = 80  # characters of a value that does not fit
_PLAIN = (int, float, str, bool)


class Value:
    """Mix-in for frozen dataclasses: a JSON round trip that is exact."""

    __slots__ = ()

    def to_json(self) -> str:
        return json.dumps(encode(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            facts = f"{error}; it begins with {_brief(text)}"
            raise OptionError(f"{cls.__name__}: this is no JSON", facts, "pass what to_json() wrote") from error
        return decode(cls, data)


def quickly_made(kind: type[T]) -> type[T]:
    """A frozen dataclass with slots, made in half the time or less; nothing else about it changes.

    The loop makes some of these per request and some hundreds per decision, and dataclasses sets every field of a
    frozen value by name (2 us for a TenantView). Here a value is of a class with the same slots that is not frozen,
    while its fields are set, and of its own ever after. Without defaults that are made, and final.
    """
    made_by = kind.__init__
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    thawed = type(f"_Thawed{kind.__name__}", kind.__bases__, {"__slots__": tuple(names)})
    lines = [
        f"def __init__(self, {', '.join(names)}):",
        "    change_class(self, thawed)",
        *[f"    self.{name} = {name}" for name in names],
        "    self.__class__ = kind",
    ]
    known: dict[str, Any] = {"change_class": _change_class, "thawed": thawed, "kind": kind}
    exec("\n".join(lines), known)  # as dataclasses does
    init = known["__init__"]
    init.__defaults__, init.__qualname__ = made_by.__defaults__, made_by.__qualname__
    init.__annotations__ = made_by.__annotations__
    kind.__init__ = init  # type: ignore[method-assign]
    kind.__init_subclass__ = classmethod(_refuse_subclass)  # type: ignore[assignment]
    return kind


_change_class: Callable[[object, type], None] = object.__dict__["__class__"].__set__


def _refuse_subclass(kind: type) -> None:
    raise TypeError(f"{kind.__mro__[1].__name__} has no subclasses: its __init__ makes that class and no other")


def encode(value: Any) -> Any:
    """A frozen value as plain lists, dicts and scalars."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: type[T], data: Any) -> T:
    """The inverse of `encode`, driven by the annotations of `kind`."""
    return typing.cast(T, _decode(kind, data, kind.__name__))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@cache
def _names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    origin = get_origin(kind)
    if origin is tuple:
        return _decode_tuple(get_args(kind), data, where)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    expected = origin or kind
    is_bool_for_int = kind is int and isinstance(data, bool)
    if kind is Any or origin is typing.Literal or (isinstance(data, expected) and not is_bool_for_int):
        return data
    raise _misfit(where, f"expected {expected.__name__}, found {type(data).__name__}", f"value: {_brief(data)}")


def _decode_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _misfit(where, f"expected an object, found {type(data).__name__}", f"value: {_brief(data)}")
    hints, names = _hints(kind), _names(kind)
    if data.keys() != names:
        unknown, missing = sorted(data.keys() - names), sorted(names - data.keys())
        raise _misfit(where, "fields do not match", f"unknown: {unknown}, missing: {missing}")
    return kind(
        **{
            name: value if type(value) is hints[name] else _decode(hints[name], value, f"{where}.{name}")
            for name, value in data.items()
        }
    )


def _decode_tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _misfit(where, f"expected a list, found {type(data).__name__}", f"value: {_brief(data)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        if kinds[0] in _PLAIN and {kinds[0]}.issuperset(map(type, data)):  # samples, by the thousand
            return tuple(data)
        return tuple(_decode(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(kinds) != len(data):
        raise _misfit(where, f"expected {len(kinds)} items, found {len(data)}", f"value: {_brief(data)}")
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _decode_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        if kind is type(None):
            if data is None:
                return None
            continue
        try:
            return _decode(kind, data, where)
        except OptionError as error:
            problems.append(error.what)
    raise _misfit(where, "no alternative fits", "; ".join(problems))


def _misfit(where: str, problem: str, facts: str) -> OptionError:
    return OptionError(f"{where}: {problem}", facts, "correct it, or write the value again with to_json()")


def _brief(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
