"""How few launches any alignment could make: what an alignment found is compared with. Pure; benches and tests ask it.

Kernels of one kind that wait for each other cannot share a launch, so a member needs as many launches of a kind as the
longest chain of them, and all members together as many as the member with the longest. Kernels that are no products
share launches with other members' only (graph.py): of these a member needs as many as it has. Launches of unlike
shapes are not counted on: with groups fewer may do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from spacetime.ir import Kernel, Program
from spacetime.merged import is_product
from spacetime.merging.align import EVERY_LAUNCH
from spacetime.merging.graph import keyed


def fewest_launches(programs: Sequence[Program], counts: Callable[[Kernel], bool] = is_product) -> int:
    """Of the kernels that count, in any merged program of these members whose launches are of equal shapes.

    >>> from spacetime.sim.architectures import program
    >>> fewest_launches([program("vgg16", folded=True), program("vgg19", folded=True)])
    19
    """
    keys, kinds = keyed(programs, EVERY_LAUNCH)
    most = Counter[int]()
    for program, own in zip(programs, keys, strict=True):
        most |= _needed(program, own)  # the larger of each
    return sum(number for key, number in most.items() if counts(kinds.kernels[key]))


def _needed(program: Program, keys: Sequence[int]) -> Counter[int]:
    """By key: how many launches one member needs."""
    longest: list[Counter[int]] = []  # by kernel: chains that end with it, or before it
    needed = Counter[int]()
    for kernel, key in zip(program.kernels, keys, strict=True):
        chains = Counter[int]()
        for dep in kernel.deps:
            chains |= longest[dep]
        if is_product(kernel):
            chains[key] += 1
            needed[key] = max(needed[key], chains[key])
        else:
            needed[key] += 1
        longest.append(chains)
    return needed
