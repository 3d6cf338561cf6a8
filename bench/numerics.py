"""Case `numerics`: do fused results keep the contract, for any subset of tenants and any row counts?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.cases import Part, Scale, modules, random_rounds
from bench.results import Figure, Measurement
from spacetime import Runtime, Tenant, zoo
from spacetime.capture.selfcheck import deviation, problem

METHOD = (
    "tenants of one model with different weights; random subsets submit 1..5 rows at once under space_time; "
    "each result against the plain module's"
)
SHARE = Figure("numerics", "results within the contract", "share", METHOD, goal="= 1")
WORST = Figure("numerics", "worst deviation", "of the largest output", METHOD, goal="<= 1e-5")


def run(scale: Scale) -> Iterator[Measurement]:
    for model in scale.models:
        kept, deviations = check(model, scale.tenant_counts, scale.num_subsets)
        counts = f"{len(kept)} results, {'/'.join(map(str, scale.tenant_counts))} tenants"
        yield SHARE.of(model, [sum(kept) / len(kept)], counts)
        yield WORST.of(model, [max(deviations)], counts)


def check(model: str, tenant_counts: Sequence[int], num_subsets: int) -> tuple[list[bool], list[float]]:
    """Per result, whether it keeps the contract and how far it deviates. The cohort grows from count to count."""
    rounds = {count: random_rounds(count, num_subsets) for count in sorted(tenant_counts)}
    parts_of: defaultdict[int, list[Part]] = defaultdict(list)
    for part in (part for some in rounds.values() for parts in some for part in parts):
        parts_of[part.tenant].append(part)
    references: dict[Part, list[Tensor]] = {}
    tenants: list[Tenant] = []
    kept: list[bool] = []
    deviations: list[float] = []
    members = modules(model, max(tenant_counts))
    with Runtime() as runtime, torch.no_grad():
        for count, some in rounds.items():
            for module in islice(members, count - len(tenants)):
                for part in parts_of[len(tenants)]:
                    references[part] = pytree.tree_leaves(module(*_inputs(model, part)))
                tenants.append(runtime.add(module, zoo.example(model), f"{model}/{len(tenants)}"))
            for parts in some:
                futures = [tenants[part.tenant].submit(*_inputs(model, part)) for part in parts]
                for part, future in zip(parts, futures, strict=True):
                    result = pytree.tree_leaves(future.result())
                    kept.append(problem(result, references[part]) is None)
                    deviations.append(max(map(deviation, result, references[part])))
    return kept, deviations


def _inputs(model: str, part: Part) -> tuple[Tensor, ...]:
    return zoo.example(model, part.rows, part.seed)
