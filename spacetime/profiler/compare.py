"""Two profiles, matched kernel by kernel, as values. Pure; the command line prints them.

Kernels are matched by what they are (operation, shapes, attributes) and by their number of rows, so two models that
only share layers can be compared too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spacetime.errors import OptionError
from spacetime.profiler.curves import Knee
from spacetime.profiler.profile import LayerKnee, Profile
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Change(Value):
    """The same work in two profiles: a kernel, or a whole model."""

    name: str
    op: str
    rows: int
    times: int  # how often the second model runs it
    before: Knee
    after: Knee

    @property
    def ratio(self) -> float:
        """Of the best latencies: 2 is twice as slow."""
        return self.after.best_us / self.before.best_us

    @property
    def weight_us(self) -> float:
        return abs(self.after.best_us - self.before.best_us) * self.times


@dataclass(frozen=True, slots=True)
class Comparison(Value):
    """What two profiles have in common, and how it changed; `spacetime compare --json` prints it."""

    before: str  # device and method
    after: str
    differences: tuple[str, ...]  # of the environments
    models: tuple[Change, ...]  # one per number of rows; none if the programs differ
    kernels: tuple[Change, ...]  # those that both have, by how much time they gain or lose
    num_only_before: int
    num_only_after: int

    @property
    def num_same_knees(self) -> int:
        return sum(change.before.units == change.after.units for change in self.kernels)


def compared(before: Profile, after: Profile, *, force: bool) -> Comparison:
    """Two profiles, matched by kernel and rows. Unequal environments are refused unless `force`."""
    differences = before.environment.differences(after.environment)
    if before.cache != after.cache:
        differences += (f"caches: {before.cache} here, {after.cache} there",)
    if differences and not force:
        on_others = before.device != after.device  # then everything differs, and follows from that
        raise OptionError(
            "these profiles cannot be compared: they were made under different conditions",
            differences[0] if on_others else "; ".join(differences),
            "profile both under the same, or add --force to compare them all the same",
        )
    common_rows = [rows for rows in after.all_rows if rows in before.all_rows]
    mine, theirs = _kernels(before, common_rows), _kernels(after, common_rows)
    common = [key for key in theirs if key in mine]
    if not common:
        facts = f"rows {list(before.all_rows)} and {list(after.all_rows)}; {len(before.program)} and "
        facts += f"{len(after.program)} kernels, none the same at the same number of rows"
        raise OptionError("these profiles have nothing in common", facts, "profile the same model with the same rows")
    times = Counter(layer.key for layer in after.program)
    changes = [
        Change(layer.name, layer.op, rows, times[key], mine[key, rows].knee, layer.knee)
        for key, rows in common
        for layer in (theirs[key, rows],)
    ]
    same_program = before.signature == after.signature
    return Comparison(
        before=f"{before.device} ({before.method})",
        after=f"{after.device} ({after.method})",
        differences=differences,
        models=tuple(_whole(before, after, rows) for rows in common_rows) if same_program else (),
        kernels=tuple(sorted(changes, key=lambda change: -change.weight_us)),
        num_only_before=len(mine) - len(common),
        num_only_after=len(theirs) - len(common),
    )


def _kernels(profile: Profile, all_rows: Sequence[int]) -> dict[tuple[str, int], LayerKnee]:
    """The first layer of every kernel, at every number of rows."""
    found: dict[tuple[str, int], LayerKnee] = {}
    for rows in all_rows:
        for layer in profile.at(rows).layers:
            found.setdefault((layer.key, rows), layer)
    return found


def _whole(before: Profile, after: Profile, rows: int) -> Change:
    return Change("whole model", "", rows, 1, before.at(rows).total, after.at(rows).total)
