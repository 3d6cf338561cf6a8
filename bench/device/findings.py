"""What a stage finds: one line per fact, printed as it is found, so that a stage that dies loses nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

MARK = "@@ "  # how a line of a stage's output that holds a finding starts

PASS, FAIL, INFO, MISSING = "PASS", "FAIL", "INFO", "MISSING"


@dataclass(frozen=True)
class Finding:
    """A fact that holds (PASS), does not (FAIL), is only measured (INFO), or could not be looked at (MISSING)."""

    stage: str
    name: str
    status: str
    facts: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Notes:
    """Prints the findings of one stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def note(self, name: str, status: str, facts: str = "", **figures: Any) -> None:
        finding = Finding(self._stage, name, status, facts, figures)
        # In one piece: other processes may write into the same file.
        sys.stdout.write(f"{MARK}{json.dumps(asdict(finding), default=str)}\n")
        sys.stdout.flush()

    def check(self, name: str, holds: bool, facts: str = "", **figures: Any) -> bool:
        self.note(name, PASS if holds else FAIL, facts, **figures)
        return holds

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What fails inside is a finding, and the stage goes on."""
        start_s = time.monotonic()
        try:
            yield
        except Exception as error:
            facts = f"{type(error).__name__}: {str(error)[:600]}"
            self.note(name, FAIL, facts, after_s=round(time.monotonic() - start_s, 2))


def read(line: str) -> Finding | None:
    """The finding in a line of output, if there is one: not in a line that was cut when its process was killed."""
    if not line.startswith(MARK):
        return None
    try:
        return Finding(**json.loads(line.removeprefix(MARK)))
    except (ValueError, TypeError):
        return None


Stage = Callable[[Notes], None]
