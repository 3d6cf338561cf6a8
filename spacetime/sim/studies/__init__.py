"""Studies: published figures beside those of the simulator, each a function that returns a Study. No torch.

`spacetime study NAME` runs one; docs/studies/ has their results. A study is a module of this package and a line here.

>>> names()[0]
'flood'
"""

from __future__ import annotations

from typing import Protocol

from spacetime.errors import OptionError
from spacetime.sim.studies import flood, gslice, krisp, scale, space_time_table
from spacetime.sim.studies.study import Progress, Study

__all__ = ["Study", "names", "run", "summary"]


class StudyFunction(Protocol):
    """Its docstring's first line says what it is about."""

    def __call__(self, *, quick: bool, progress: Progress) -> Study: ...


_STUDIES: dict[str, StudyFunction] = {
    "space_time_table": space_time_table.study,
    "krisp": krisp.study,
    "gslice": gslice.study,
    "scale": scale.study,
    "flood": flood.study,
}


def names() -> tuple[str, ...]:
    """Every study, sorted."""
    return tuple(sorted(_STUDIES))


def summary(name: str) -> str:
    """One line on what it is about."""
    return (_find(name).__doc__ or "").strip().partition("\n")[0]


def run(name: str, *, quick: bool = False, progress: Progress = lambda done, total: None) -> Study:
    """Play everything that the study needs; `quick`: only a part of it, in seconds, for a look."""
    return _find(name)(quick=quick, progress=progress)


def _find(name: str) -> StudyFunction:
    if name not in _STUDIES:
        raise OptionError(f"study {name!r} does not exist", f"known: {', '.join(names())}", "name one of these")
    return _STUDIES[name]
