"""What explain() says of weights that are not what they were. Runtime only."""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.capture.written import written
from spacetime.runtime.prepare import Preparer
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class WrittenReport(Value):
    """A tenant whose weights somebody has written to, or replaced, while it was one."""

    tenant: str
    weights: tuple[str, ...]
    others: tuple[str, ...]  # tenants that have some of what was written to as well

    def __str__(self) -> str:
        more = f" and {len(self.weights) - 1} more" if len(self.weights) > 1 else ""
        others = f"; the same memory has weights of {', '.join(self.others)}" if self.others else ""
        return (
            f"written to {self.tenant}: {self.weights[0]}{more} changed after add(), and its results may be of the old "
            f"weights or of the new ones{others}; remove() it, and add() the module again"
        )


def written_reports(preparer: Preparer) -> tuple[WrittenReport, ...]:
    cohorts = [executable.cohort for executable in preparer.cohorts.values()]
    return tuple([WrittenReport(name, *found) for name, found in written(cohorts, preparer.modules).items()])
