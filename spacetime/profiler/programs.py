"""Captured programs on disk: a model that is known is not captured again. The command line keeps them; no torch.

A file for each, named for what it was captured from: programs/<identity>.json in the store. It is written beside and
put in place whole, so writers need no lock; the last one counts, and all write the same. What cannot be read, or was
written for something else, is a miss with its reason. The programs that were not used for longest make room.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.profiler.inside import inside
from spacetime.profiler.writing import write_whole
from spacetime.values import Value, decode

FOLDER = "programs"
SCHEMA = 1
MOST_KEPT = 64  # programs: the largest of them take a megabyte
MOST_BYTES = 64 << 20  # of one that is read: a larger file is none of ours


@dataclass(frozen=True, slots=True)
class Surroundings(Value):
    """What a run of a program has shown beside its kernels: a campaign's Surrounding."""

    has_code: bool
    wholes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Beside(Value):
    """A file that the model's own names: where it is from its folder, and the digest of what is in it."""

    location: str
    sha256: str  # "": there is no such file

    @classmethod
    def of(cls, model: Path, location: str) -> Beside:
        return cls(location, _digest_inside(model, location))


@dataclass(frozen=True, slots=True)
class KeptProgram(Value):
    """A program with what else a profile of it takes that only torch could tell."""

    program: Program
    beside: tuple[Beside, ...]
    surroundings: Surroundings | None  # None: it was not run
    libraries: tuple[tuple[str, str], ...]  # as environment.cpu_libraries has them

    def fits(self, model: Path) -> bool:
        """Are the files that the model names as they were?"""
        return all(each == Beside.of(model, each.location) for each in self.beside)


class Programs:
    """The kept programs of one store."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def find(self, identity: str) -> KeptProgram | None:
        """None if there is none. An `OptionError` says why one that is there cannot be used."""
        path = self._path(identity)
        try:
            with path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        head, _, body = text.partition(b"\n")
        if head != _head(identity, body):
            raise _unusable(path, "it is not what was written for this model: damaged, or something else's")
        try:
            kept = decode(KeptProgram, json.loads(body))
        except (ValueError, RecursionError) as error:  # OptionError is a ValueError, too
            raise _unusable(path, str(error).splitlines()[0]) from error
        with suppress(OSError):  # somebody else's store
            os.utime(path)
        return kept

    def keep(self, identity: str, kept: KeptProgram) -> None:
        """An `OptionError` says why it is not kept."""
        body = kept.to_json()
        path = self._path(identity)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{_head(identity, body.encode()).decode()}\n{body}")
            self._make_room()
        except OSError as error:
            facts = f"{error.filename or path}: {error.strerror or error}"
            raise OptionError(
                f"the program cannot be kept in {path}", facts, "make room there, or name another store"
            ) from error

    def _make_room(self) -> None:
        """Half-written files of writers that were killed count, too."""
        used_ns = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another writer makes room
                used_ns[path] = path.stat().st_mtime_ns
        for path in sorted(used_ns, key=lambda path: used_ns[path])[:-MOST_KEPT]:
            path.unlink(missing_ok=True)

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}.json"


def digest(path: Path) -> str:
    """Of all of a file: its size and its date tell nothing of what was put in its place."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_inside(model: Path, location: str) -> str:
    try:
        return digest(inside(model, location, location))
    except (OptionError, OSError):  # the model does without it, else its import says what is wrong
        return ""


def _head(identity: str, body: bytes) -> bytes:
    return f"spacetime program {SCHEMA} {identity} {hashlib.sha256(body).hexdigest()}".encode()


def _unusable(path: Path, facts: str) -> OptionError:
    return OptionError(f"the program kept in {path} cannot be used", facts, "the model is captured again")
