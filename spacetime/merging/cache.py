"""Merged programs that are known already: aligned once per set of residents, restricted to who is active; no torch.

Whoever prepares executables keeps one. Any thread may ask; aligning happens in the thread that asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merged import MergedProgram
from spacetime.merging.align import EVERY_LAUNCH, align, gained
from spacetime.merging.gains import Weights

Signatures = frozenset[str]


class MergeCache:
    """By the set of the members' signatures; what was not asked for longest is forgotten first."""

    def __init__(self, weights: Weights = EVERY_LAUNCH, capacity: int = 64) -> None:
        if capacity < 1:
            raise OptionError(f"a cache of {capacity} merged programs", "it keeps at least one", "use capacity=64")
        self.weights = weights
        self.capacity = capacity
        self._known: OrderedDict[Signatures, MergedProgram] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def resident(self, programs: Sequence[Program]) -> MergedProgram:
        """Of all of them: known, or aligned now (milliseconds to hundreds of them: not on the hot path)."""
        members = frozenset(program.signature for program in programs)
        known = self._find(members)
        return known if known is not None else self._keep(members, align(programs, self.weights))

    def active(self, resident: MergedProgram, signatures: Collection[str]) -> MergedProgram:
        """Of these members: as refined, else what the residents' program becomes without the others. Fast."""
        members = frozenset(signatures)
        known = self._find(members)
        if known is not None:
            return known
        at = {program.signature: member for member, program in enumerate(resident.programs)}
        unknown = sorted(members - at.keys())
        if unknown:
            raise OptionError(
                f"{len(unknown)} of {len(members)} active programs are not resident",
                f"unknown signatures: {', '.join(unknown)}",
                "align all residents anew when one is added",
            )
        return self._keep(members, resident.restrict([at[signature] for signature in members]))

    def refine(self, restricted: MergedProgram) -> MergedProgram:
        """Aligned afresh, in the thread that calls; from now on `active` answers with it if it gains more."""
        fresh = align(restricted.programs, self.weights)
        if gained(fresh, self.weights) <= gained(restricted, self.weights):
            fresh = restricted
        members = frozenset(program.signature for program in restricted.programs)
        with self._lock:
            self._put(members, fresh)
        return fresh

    def _find(self, members: Signatures) -> MergedProgram | None:
        with self._lock:
            found = self._known.get(members)
            if found is not None:
                self._known.move_to_end(members)
            return found

    def _keep(self, members: Signatures, merged: MergedProgram) -> MergedProgram:
        """If another thread was faster, what it kept."""
        with self._lock:
            return self._known.get(members) or self._put(members, merged)

    def _put(self, members: Signatures, merged: MergedProgram) -> MergedProgram:
        self._known[members] = merged
        self._known.move_to_end(members)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return merged
