"""Profiles on disk: append-only JSON lines, one folder per device. Used by the profiler and its commands.

A line is either an environment or a measurement that names its environment. Lines are appended under a lock in
one write, so two writers never mix and a killed one leaves at most a torn last line, which the next writer ends.
What does not fit on the disk is taken back and said.
Nothing is ever changed in place: the latest measurement of a key counts. What was begun and not done is in a file of
its own beside that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from spacetime.errors import OptionError
from spacetime.profiler.records import SCHEMA, Environment, Key, Measurement
from spacetime.values import decode, encode

FILE = "kernels.jsonl"
BEGUN = "begun.jsonl"  # beside it: lines of the same kind, of kernels that are not known yet
_PREFIX = '{"schema":'


@dataclass(slots=True)
class Contents:
    """What a store holds: the latest measurement of every key, by environment."""

    environments: dict[str, Environment] = field(default_factory=dict)
    measurements: dict[str, dict[Key, Measurement]] = field(default_factory=dict)
    num_torn: int = 0  # lines that a killed writer left half written; their keys count as not measured

    def of(self, environment: Environment) -> dict[Key, Measurement]:
        return self.measurements.get(environment.id, {})

    def stale(self, environment: Environment) -> dict[Key, tuple[Environment, Measurement]]:
        """Keys known only from other environments of this device, with the latest of them."""
        fresh = self.of(environment)
        return {
            key: (self.environments[id_], measurement)
            for id_, known in self.measurements.items()
            if id_ != environment.id and self.environments[id_].device == environment.device
            for key, measurement in known.items()
            if key not in fresh
        }


class Store:
    """The measurements of one device under a root folder, e.g. profiles/cpu-2-cores/kernels.jsonl."""

    def __init__(self, root: Path, device: str) -> None:
        self.path = root / slug(device) / FILE

    @property
    def begun(self) -> Store:
        """What interrupted runs had of kernels that were not done. Its latest line of a key has all samples so far.

        A file of its own: whoever reads the other one takes its lines for measurements that are done.
        """
        beside = copy(self)
        beside.path = self.path.with_name(BEGUN)
        return beside

    def append(self, environment: Environment, measurements: Iterable[Measurement]) -> None:
        """Add lines; safe beside other writers, in this process and others."""
        lines = [_line("measurement", {"environment": environment.id, **encode(each)}) for each in measurements]
        if not lines:
            return
        with self._opened() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if environment.id not in _environment_ids(file):
                    lines.insert(0, _line("environment", {"id": environment.id, **encode(environment)}))
                torn = b"" if _ends_with_newline(file) else b"\n"
                _append_whole(file, torn + "".join(lines).encode())
            except OSError as error:  # the disk is full, or knows no locks
                raise self._cannot_be_kept(error) from error

    def check_writable(self) -> None:
        """Before anything is measured that could not be kept."""
        self._opened().close()

    def _opened(self) -> BinaryIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("a+b")
        except OSError as error:
            raise self._cannot_be_kept(error) from error

    def _cannot_be_kept(self, error: OSError) -> OptionError:
        what, facts = f"measurements cannot be kept in {self.path}", f"{error.filename or self.path}: {error.strerror}"
        return OptionError(what, facts, "make room there, or name another store: --store FOLDER, or store=")

    def read(self) -> Contents:
        """Everything, the latest of every key. A line that is not ours is an error that names it."""
        contents = Contents()
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for number, line in enumerate(text.split("\n"), 1):
            if not line:
                continue
            try:
                self._enter(contents, json.loads(line))
            except json.JSONDecodeError as error:
                if line[: len(_PREFIX)] != _PREFIX[: len(line)]:
                    raise self._not_ours(number, str(error)) from error
                contents.num_torn += 1
            except (OptionError, KeyError) as error:
                raise self._not_ours(number, getattr(error, "what", None) or repr(error)) from error
        return contents

    def _not_ours(self, number: int, problem: str) -> OptionError:
        return OptionError(
            f"{self.path}, line {number} is no line of a profile", problem, "remove the line, or the file"
        )

    def _enter(self, contents: Contents, data: Any) -> None:
        if not isinstance(data, dict):
            raise OptionError(f"expected an object, found {type(data).__name__}")
        if data.pop("schema") != SCHEMA:
            raise OptionError(f"it was written for another version; this one reads schema {SCHEMA}")
        kind = data.pop("type")
        if kind == "environment":
            environment_id = data.pop("id")
            contents.environments[environment_id] = decode(Environment, data)
        else:
            environment_id = data.pop("environment")
            if environment_id not in contents.environments:
                raise OptionError(f"its environment {environment_id} is not described before it")
            measurement = decode(Measurement, data)
            contents.measurements.setdefault(environment_id, {})[measurement.key] = measurement


def slug(name: str) -> str:
    """A name of a folder or a file for a device or a model, in any script.

    >>> slug("Intel(R) Xeon(R), 2 cores")
    'intel-r-xeon-r-2-cores'
    """
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-") or "unnamed"


def _line(kind: str, data: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, "type": kind, **data}, separators=(",", ":")) + "\n"


def _append_whole(file: BinaryIO, data: bytes) -> None:
    """All of it, or nothing: the caller holds the lock, so nobody has written behind what is taken back."""
    size_before = file.seek(0, os.SEEK_END)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file.fileno(), left) :]  # a disk that fills up takes a part, and refuses the next
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size_before)
        raise


def _environment_ids(file: Any) -> set[str]:
    file.seek(0)
    marker = b'"type":"environment","id":"'
    return {line.partition(marker)[2].partition(b'"')[0].decode() for line in file if marker in line}


def _ends_with_newline(file: Any) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(size - 1)
    return bool(file.read(1) == b"\n")
