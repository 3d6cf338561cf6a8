"""Measured configs on disk: configs.json beside this file, written by tune.py, read once. No triton.

An entry counts for the kernel, the device and the shape it was measured with, and for nothing else; what is not in the
table runs with the kernel's default config.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spacetime.errors import OptionError
from spacetime.values import Value, decode, encode

SHIPPED = Path(__file__).with_name("configs.json")
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured(Value):
    """The fastest config of one shape on one device, and how that is known."""

    kernel: str
    device: str
    shape: dict[str, Any]
    config: dict[str, Any]
    time_us: float
    method: str
    versions: dict[str, str]

    @property
    def key(self) -> Key:
        return key(self.kernel, self.device, self.shape)


Key = tuple[str, str, str]


def key(kernel: str, device: str, shape: Value | dict[str, Any]) -> Key:
    return kernel, device, json.dumps(encode(shape), sort_keys=True)


Table = dict[Key, Measured]


@cache
def shipped() -> Table:
    return load(SHIPPED)


def load(path: Path) -> Table:
    """An absent file is an empty table; a broken one is an error."""
    if not path.exists():
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        schema, entries = contents["schema"], contents["entries"]
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is no table of configs", repr(error), "tune again") from error
    if schema != SCHEMA:
        raise OptionError(f"{path} has schema {schema}", f"this version reads {SCHEMA}", "tune again")
    found = [decode(Measured, entry) for entry in entries]
    return {each.key: each for each in found}


def save(path: Path, entries: Iterable[Measured]) -> None:
    """Replaces the file in one step; one entry a line, in a fixed order."""
    ordered = sorted(entries, key=lambda each: each.key)
    lines = ",\n".join(json.dumps(encode(each)) for each in ordered)
    text = f'{{"schema": {SCHEMA}, "entries": [\n{lines}\n]}}\n'
    draft = path.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
