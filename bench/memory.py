"""The memory of N tenants, measured in a process of its own: `python -m bench.memory MODEL COUNT [--shared]`.

Prints JSON for bench/add.py. One tenant of the model comes and goes first: what the architecture costs, and the
libraries that it loads, are not weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from bench.cases import modules, share_backbone
from spacetime import Explanation, Runtime, zoo

NUM_ROUNDS = 20


def measure(model: str, count: int, *, shared: bool) -> dict[str, int]:
    members = list(modules(model, count))
    if shared:
        share_backbone(members)
    module_bytes = sum(tensor.nbytes for member in members for tensor in _weights(member))
    distinct_bytes = sum(tensor.nbytes for tensor in _distinct(members))
    _add_and_serve(model, [zoo.build(model, seed=count)])
    before = resident_bytes()
    added, served, explanation = _add_and_serve(model, members)
    return {
        "module_bytes": module_bytes,
        "distinct_bytes": distinct_bytes,
        "growth_added_bytes": added - before,
        "growth_served_bytes": served - before,
        "slab_bytes": sum(cohort.resident_bytes for cohort in explanation.cohorts),
        "num_opaque": len(explanation.opaque),
    }


def _add_and_serve(model: str, members: Sequence[nn.Module]) -> tuple[int, int, Explanation]:
    """Resident bytes after adding, and after serving."""
    args = zoo.example(model, rows=1)
    with Runtime() as runtime:
        tenants = [runtime.add(module, zoo.example(model), f"{model}/{i}") for i, module in enumerate(members)]
        added = resident_bytes()
        for _ in range(NUM_ROUNDS):
            for future in [tenant.submit(*args) for tenant in tenants]:
                future.result()
        return added, resident_bytes(), runtime.explain()


def resident_bytes() -> int:
    """Memory that the process occupies, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _distinct(members: Sequence[nn.Module]) -> Iterator[Tensor]:
    """One tensor for every content."""
    seen = set()
    for tensor in itertools.chain.from_iterable(map(_weights, members)):
        digest = hashlib.blake2b(tensor.detach().numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield tensor


def _weights(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("count", type=int)
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.count, shared=options.shared)))
