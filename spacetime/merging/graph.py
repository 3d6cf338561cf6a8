"""Programs as small integers: what is fusible with what, siblings joined. merging/ only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spacetime.ir import Kernel, Program
from spacetime.merged import dtype_of, is_product
from spacetime.merging.gains import Floats, Gains, Weights

Node = tuple[int, int]  # (member, kernel): a Part, while there are thousands of them


@dataclass(frozen=True, eq=False)
class Graph:
    """One member, in execution order. An entry is one kernel, or siblings: equal products of one input."""

    keys: NDArray[np.intp]
    nodes: list[list[Node]]


class Kinds:
    """The distinct kernels of all members, and what fusing them gains. A key is an index into `kernels`."""

    def __init__(self, kernels: Sequence[Kernel], weights: Weights) -> None:
        self.kernels = kernels
        self._gains: Gains = weights.gains(kernels)
        self.shared = self._gains.shared
        numbers: dict[tuple[str, str, bool], int] = {}
        # Unlike products of one operation and dtype may be grouped; nothing else is.
        self._groups = np.array(
            [
                numbers.setdefault((kernel.op, dtype_of(kernel), bool(kernel.weights)), len(numbers))
                if is_product(kernel)
                else -1 - key
                for key, kernel in enumerate(kernels)
            ],
            dtype=np.intp,
        )

    def gains_with(self, key: int) -> Floats:
        """What one launch for `key` and each of the keys gains; 0 where it cannot be."""
        grouped = self._gains.grouped(key) if self._groups[key] >= 0 else None
        if grouped is None:
            gains = np.zeros(len(self.kernels))
        else:
            gains = np.where(self.alike(key), np.maximum(grouped, 0.0), 0.0)
        gains[key] = max(self.shared[key], 0.0)
        return gains

    def alike(self, key: int) -> NDArray[np.bool_]:
        """Unlike products of its operation and dtype."""
        alike: NDArray[np.bool_] = self._groups == self._groups[key]
        alike[key] = False
        return alike

    def joins_siblings(self, key: int) -> bool:
        """Two results of one member come from one launch of products only: of anything else it takes a copy."""
        return is_product(self.kernels[key])


def graphs(programs: Sequence[Program], weights: Weights) -> tuple[list[Graph], Kinds]:
    keys, kinds = keyed(programs, weights)
    return [_graph(member, program, keys[member], kinds) for member, program in enumerate(programs)], kinds


def keyed(programs: Sequence[Program], weights: Weights) -> tuple[list[list[int]], Kinds]:
    """The key of every kernel of every program, and what the keys stand for."""
    known: dict[tuple[object, ...], int] = {}
    kernels: list[Kernel] = []
    keys = [[_key(kernel, known, kernels) for kernel in program.kernels] for program in programs]
    return keys, Kinds(kernels, weights)


def _key(kernel: Kernel, keys: dict[tuple[object, ...], int], kernels: list[Kernel]) -> int:
    # Without its weights a kernel does other work, even if all shapes agree.
    key = keys.setdefault((kernel.op, kernel.attributes, kernel.inputs, len(kernel.weights)), len(kernels))
    if key == len(kernels):
        kernels.append(kernel)
    return key


def _graph(member: int, program: Program, keys: list[int], kinds: Kinds) -> Graph:
    """Siblings stand where the first of them did: all that they read is there, and nobody reads from them before."""
    node_keys: list[int] = []
    nodes: list[list[Node]] = []
    siblings: dict[tuple[int, tuple[int, ...]], int] = {}
    for index, (key, kernel) in enumerate(zip(keys, program.kernels, strict=True)):
        if kinds.joins_siblings(key) and kinds.shared[key] > 0:
            at = siblings.setdefault((key, kernel.deps), len(nodes))
            if at < len(nodes):
                nodes[at].append((member, index))
                continue
        node_keys.append(key)
        nodes.append([(member, index)])
    return Graph(np.array(node_keys, dtype=np.intp), nodes)
