"""Models that the command line has captured before: their names, and the programs kept of them. Used by profile.py.

A file is known by all of its contents, also those of the files that it names, a model of the zoo by its name: the
zoo's code is this package's, which the conditions hold. A factory is never known: what it makes follows from code and
data that only running it would tell. No torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.profiler import environment
from spacetime.profiler.conditions import conditions_digest
from spacetime.profiler.inside import inside
from spacetime.profiler.memory import available_bytes
from spacetime.profiler.programs import Beside, KeptProgram, Programs, Surroundings, digest

KINDS = "MODEL.onnx, MODEL.pt2, package.module:factory, or zoo:NAME"
FILES = (".onnx", ".pt2")
ZOO = "zoo:"
_State = tuple[int, int, int, int]  # of a file: what changes when it is written


@dataclass(frozen=True)
class Origin:
    """What a program is captured from, as it is now."""

    path: Path  # of a file; else where nothing is
    name: str
    identity: str
    state: _State | None
    asked_ns: int


def origin_of(source: str, sizes: Mapping[str, int]) -> Origin | None:
    """None: it is captured every time, or there is no such model, which capturing it will tell."""
    path, asked_ns = Path(source), time.time_ns()
    is_onnx, is_file = source.lower().endswith(FILES[0]), source.lower().endswith(FILES)
    if (sizes and not is_onnx) or not (is_file or source.startswith(ZOO)):
        return None
    conditions = conditions_digest()
    if conditions is None:
        return None
    try:
        if is_file and not (path.is_file() and path.stat().st_size <= available_bytes()):
            return None
        state = _state(path) if is_file else None
        what = [path.suffix.lower(), digest(path)] if is_file else [source]
    except OSError:  # nobody may read it
        return None
    text = json.dumps([what, sorted(sizes.items()), conditions])
    name = path.stem if is_file else source.removeprefix(ZOO)
    return Origin(path, name, hashlib.sha256(text.encode()).hexdigest(), state, asked_ns)


class Known:
    """A model of the command line: what the store has of it, then what is to be kept of it."""

    def __init__(self, source: str, sizes: Mapping[str, int], folder: Path) -> None:
        self._source, self._sizes, self._programs = source, sizes, Programs(folder)
        self.origin: Origin | None = None
        self.kept: KeptProgram | None = None
        self._captured: KeptProgram | None = None

    def look(self) -> None:
        """All of a file is read for it."""
        self.origin = origin_of(self._source, self._sizes)
        self.kept = None if self.origin is None else self._found(self.origin)

    @property
    def libraries(self) -> Mapping[str, str]:
        """What torch computes with: asked of it, if it is here, since its settings may have been changed."""
        if sys.modules.get("torch") is not None:
            return environment.cpu_libraries()
        assert self.kept is not None, "asked for with a kept program"
        return dict(self.kept.libraries)

    def captured(self, program: Program, surroundings: Surroundings | None, beside: Sequence[str]) -> None:
        """From the files as they were when they were looked at, or it is not kept."""
        origin = self.origin
        if origin is None or not environment.settings_are_default() or not _is_unchanged(origin, beside):
            return
        if surroundings is None and self.kept is not None and self.kept.program == program:
            surroundings = self.kept.surroundings
        digests = tuple(Beside.of(origin.path, location) for location in beside)
        self._captured = KeptProgram(program, digests, surroundings, tuple(sorted(environment.cpu_libraries().items())))

    def keep(self) -> None:
        """What was captured, if that is new. It is no error where it cannot be kept: everything else was done."""
        if self.origin is None or self._captured is None or self._captured == self.kept:
            return
        try:
            self._programs.keep(self.origin.identity, self._captured)
        except OptionError as error:
            _note(error)

    def _found(self, origin: Origin) -> KeptProgram | None:
        try:
            found = self._programs.find(origin.identity)
        except OptionError as error:
            _note(error)
            return None
        return found if found is not None and found.fits(origin.path) else None


def _note(error: OptionError) -> None:
    print(f"note: {error}", file=sys.stderr)


def _is_unchanged(origin: Origin, beside: Sequence[str]) -> bool:
    """Nobody wrote to the files while they were read."""
    if origin.state is None:
        return True
    written_ns = []
    try:
        for location in beside:
            with suppress(OptionError):  # it was not needed, so it need not be there
                written_ns.append(inside(origin.path, location, location).stat().st_ctime_ns)
        return _state(origin.path) == origin.state and all(each < origin.asked_ns for each in written_ns)
    except OSError:
        return False


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_sizes(texts: Sequence[str]) -> dict[str, int]:
    """
    >>> read_sizes(["tokens=128", "x:2=64"])
    {'tokens': 128, 'x:2': 64}
    """
    sizes = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not (name and number.isascii() and number.isdigit() and int(number)):
            facts = "it is a name, =, and a whole number from 1"
            raise OptionError(f"--size {text} is no size", facts, "--size tokens=128")
        sizes[name] = int(number)
    return sizes
