"""Running the command line inside a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from spacetime.cli import main


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: object
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: object, entry: Callable[[Sequence[str]], None] = main) -> Ended:
    with pytest.raises(SystemExit) as ended:
        entry(list(map(str, arguments)))
    return Ended(ended.value.code, *capsys.readouterr())
