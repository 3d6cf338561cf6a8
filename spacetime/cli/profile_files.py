"""The files that `spacetime profile` writes: checked before anything is measured, written after. Used by profile.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spacetime.errors import OptionError
from spacetime.profiler import pictures
from spacetime.profiler.page import page
from spacetime.profiler.profile import Profile
from spacetime.profiler.store import slug
from spacetime.profiler.writing import write_whole
from spacetime.values import Value

MOST_LETTERS = 60  # of a model's name in that of a file, which may have 255 bytes: a letter takes up to four
OTHERS = {".html": "--html", ".png": "--picture", ".svg": "--picture", ".csv": "--csv"}  # what their names promise


@dataclass(frozen=True, slots=True)
class Files(Value):
    """Where things go besides the profile itself and its page, which are always written."""

    output: Path | None
    html: Path | None
    pictures: tuple[Path, ...]
    part: str
    csv: Path | None
    chrome: Path | None

    def check(self, model: str) -> None:
        """Before an hour of measurements, not after it."""
        for path in self._named:
            if not path.parent.is_dir():
                facts = f"{path.parent} is not a directory"
                raise OptionError(f"{path} cannot be written", facts, "make the directory first")
            if path.is_dir():
                raise OptionError(f"{path} cannot be written", "it is a directory", "name a file in it")
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise OptionError(f"{path} cannot be written", "its permissions forbid it", "name another place")
        for path in self.pictures:
            pictures.check(path, self.part)
        suffix = "" if self.output is None else self.output.suffix.lower()
        if suffix in OTHERS:
            raise OptionError(f"{self.output} is no profile", "profiles are JSON", f"say {OTHERS[suffix]} for it")
        self._check_apart(Path(model))

    def page_beside(self, output: Path) -> Path:
        return self.html or output.with_name(output.name.removesuffix(".json") + ".html")

    @property
    def _named(self) -> tuple[Path, ...]:
        return tuple(filter(None, (self.output, self.html, *self.pictures, self.csv, self.chrome)))

    def _check_apart(self, model: Path) -> None:
        """No file may take the place of another one of these, or of the model."""
        page = () if self.output is None or self.html is not None else (self.page_beside(self.output),)
        taken = {model.resolve(): "the model is there"} if model.is_file() else {}
        for path in (*self._named, *page):
            if path.exists() and not path.is_file():  # a pipe takes everything
                continue
            if path.resolve() in taken:
                facts = taken[path.resolve()]
                raise OptionError(f"{path} cannot be written", facts, "name another place for one of them")
            taken[path.resolve()] = "another file of this profile goes there"


def write_files(files: Files, folder: Path, name: str, found: Profile) -> tuple[Path, ...]:
    """The profile, its page and what was asked for; all paths."""
    kept = folder / slug(found.device) / f"{slug(name)[:MOST_LETTERS]}-{found.signature[:8]}.profile.json"
    output = files.output or kept
    html = files.page_beside(kept if output.exists() and not output.is_file() else output)
    for path, write in (
        (output, found.save),
        (html, lambda path: write_whole(path, page(found, name, _details(found)))),
        *((picture, lambda path: pictures.plot(found, path, files.part, name)) for picture in files.pictures),
        (files.csv, lambda path: write_whole(path, _csv(found))),
        (files.chrome, lambda path: write_whole(path, found.to_chrome())),
    ):
        if path is not None:
            _write(path, write)
    return tuple(filter(None, (output, html, *files.pictures, files.csv, files.chrome)))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except BrokenPipeError:  # it was written to a pipe that nobody reads any more, as any other output
        raise
    except OSError as error:
        facts = f"{error.filename or path}: {error.strerror or error}"
        next_step = "name another place: what was measured is kept, the same command is quick"
        raise OptionError(f"{path} cannot be written", facts, next_step) from error


def _csv(found: Profile) -> str:
    """Every number of rows, under one header."""
    each = (found.at(rows).to_csv() for rows in found.all_rows)
    header, *lines = (line for part in each for line in part.splitlines(keepends=True))
    return header + "".join(line for line in lines if line != header)


def _details(found: Profile) -> dict[str, str]:
    environment = found.environment
    dates = sorted({measurement.date for measurement in found.measurements})
    return {
        "driver": environment.driver,
        **dict(environment.versions),
        "caches": found.cache,
        "program": found.signature,
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
    }
