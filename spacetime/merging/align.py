"""Programs of different cohorts -> one merged program. Pure; runtimes and policies call it off the hot path; no torch.

Three passes. Siblings of a member (q, k and v) become one entry (graph.py). The members, longest first, are aligned
one after another to the sequence of launches so far, by the heaviest common subsequence (sequences.py). That looks at
one order of each member only; the last pass looks at the dependencies themselves and joins what is left and independent
(knitting.py). Every pass keeps an order in which all steps can run, so no alignment can make a cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merged import Form, MergedProgram, Part, Step
from spacetime.merging.gains import Launches, Weights
from spacetime.merging.graph import Graph, Kinds, Node, graphs, keyed
from spacetime.merging.knitting import Knot, knit
from spacetime.merging.sequences import heaviest_matches

EVERY_LAUNCH = Launches()


def align(programs: Sequence[Program], weights: Weights = EVERY_LAUNCH) -> MergedProgram:
    """The members come out in the order of their signatures, whatever order they came in.

    >>> from spacetime.sim.architectures import program
    >>> align([program("vgg16", folded=True), program("vgg19", folded=True)]).num_launches
    27
    """
    members = canonical(programs)
    found, kinds = graphs(members, weights)
    knots = knit(progressive(found, kinds), members, kinds)
    return MergedProgram(members, tuple([_step(knot, kinds) for knot in knots]))


def canonical(programs: Sequence[Program]) -> tuple[Program, ...]:
    """By signature: the order of the members of a merged program."""
    signatures = [program.signature for program in programs]
    if not signatures or len(set(signatures)) < len(signatures):
        raise OptionError(
            f"{len(signatures)} programs cannot be merged",
            f"signatures: {', '.join(sorted(signatures)) or 'none'}",
            "name every cohort once: tenants of one cohort share its launches already",
        )
    return tuple(sorted(programs, key=lambda program: program.signature))


def progressive(found: Sequence[Graph], kinds: Kinds) -> list[Knot]:
    """All members in one sequence of launches, the longest first, the others aligned to what is there."""
    order = sorted(range(len(found)), key=lambda member: -len(found[member].keys))
    knots: list[Knot] = []
    for member in order:
        knots = _aligned(knots, found[member], kinds)
    return knots


def _aligned(knots: list[Knot], graph: Graph, kinds: Kinds) -> list[Knot]:
    own = [Knot(key, nodes) for key, nodes in zip(graph.keys.tolist(), graph.nodes, strict=True)]
    keys = np.array([knot.key for knot in knots], dtype=np.intp)
    woven: list[Knot] = []
    i = j = 0
    for match_i, match_j in heaviest_matches(keys, graph.keys, kinds.gains_with):
        knots[match_i].absorb(own[match_j])
        woven += knots[i:match_i]
        woven += own[j:match_j]
        woven.append(knots[match_i])
        i, j = match_i + 1, match_j + 1
    return woven + knots[i:] + own[j:]


def _step(knot: Knot, kinds: Kinds) -> Step:
    parts = tuple([Part(*node) for node in sorted(knot.nodes)])
    return Step(parts, _form(knot.nodes, {kinds.kernels[key].key for key in knot.keys}))


def _form(nodes: Sequence[Node], keys: set[str]) -> Form:
    if len(nodes) == 1:
        return "alone"
    return "shared" if len(keys) == 1 else "grouped"


def gained(merged: MergedProgram, weights: Weights = EVERY_LAUNCH) -> float:
    """What its steps spare, as these weights count: the measure by which two alignments are compared."""
    keys, kinds = keyed(merged.programs, weights)
    total = 0.0
    for step in merged.steps:
        counts = Counter(keys[part.member][part.kernel] for part in step.parts)
        first, *others = sorted(counts)
        total += sum(kinds.shared[key] * (count - 1) for key, count in counts.items())
        total += sum(kinds.gains_with(first)[other] for other in others)
    return float(total)
