"""The files that `spacetime profile` writes: checked before anything is measured, written after. Used by profile.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spacetime.errors import OptionError
from spacetime.profiler import pictures
from spacetime.profiler.page import page
from spacetime.profiler.profile import Profile
from spacetime.profiler.store import slug
from spacetime.values import Value

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

    def check(self) -> None:
        """Before an hour of measurements, not after it."""
        for path in filter(None, (self.output, self.html, *self.pictures, self.csv, self.chrome)):
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


def write_files(files: Files, folder: Path, name: str, found: Profile) -> tuple[Path, ...]:
    """The profile, its page and what was asked for; all paths."""
    output = files.output or folder / slug(found.device) / f"{slug(name)}-{found.signature[:8]}.profile.json"
    html = files.html or output.with_name(output.name.removesuffix(".json") + ".html")
    try:
        found.save(output)
        html.write_text(page(found, name, _details(found)), encoding="utf-8")
        for path in files.pictures:
            pictures.plot(found, path, files.part, name)
        if files.csv is not None:
            files.csv.write_text(_csv(found), encoding="utf-8")
        if files.chrome is not None:
            files.chrome.write_text(found.to_chrome(), encoding="utf-8")
    except BrokenPipeError:  # it was written to a pipe that nobody reads any more, as any other output
        raise
    except OSError as error:
        next_step = "name another place: what was measured is kept, the same command is quick"
        raise OptionError(
            f"{error.filename or 'a file'} cannot be written", error.strerror or str(error), next_step
        ) from error
    return tuple(filter(None, (output, html, *files.pictures, files.csv, files.chrome)))


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
