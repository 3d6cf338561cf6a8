"""What the cases draw from: sizes, tenants, random traffic. Tests import it too; seeded, nothing is measured here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from spacetime import zoo


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure."""

    models: tuple[str, ...]
    quick: bool = False  # for cases that have sizes of their own: the short ones
    smoke: bool = False  # quick, and only as much as shows that everything runs
    device: str = "cpu"  # "cpu" | "cuda:N": for cases that run on either
    tenant_counts: tuple[int, ...] = (2, 8, 16)
    num_subsets: int = 8  # numerics: per model and tenant count
    num_tenants: int = 8  # add, throughput
    num_repeats: int = 3  # add: fresh runtimes per model
    memory_models: tuple[str, ...] = ()  # add: in processes of their own
    num_calls: int = 1000  # lone, decision
    num_blocks: int = 9  # throughput: of each side, after the warm-up
    rounds_per_block: int = 4  # throughput: the first of a block is not counted
    warm_up_rounds: int = 2000  # throughput: until the cost model has settled ...
    warm_up_s: float = 5.0  # ... or for so long


FULL = Scale(zoo.STANDARD, memory_models=zoo.STANDARD)
QUICK = Scale(
    models=("mlp", "resnet18", "bert"),
    quick=True,
    num_subsets=2,
    num_repeats=1,
    memory_models=("bert",),
    num_calls=500,
    num_blocks=5,
    warm_up_s=2.0,
)
SMOKE = Scale(
    models=("mlp",),
    quick=True,
    smoke=True,
    tenant_counts=(2,),
    num_subsets=1,
    num_tenants=2,
    num_repeats=1,
    num_calls=20,
    num_blocks=2,
    rounds_per_block=2,
    warm_up_rounds=5,
    warm_up_s=0.5,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One request of a round: which tenant, how many rows, and the seed of its input."""

    tenant: int
    rows: int
    seed: int


def random_rounds(num_tenants: int, num_rounds: int, max_rows: int = 5, seed: int = 0) -> list[tuple[Part, ...]]:
    """Rounds of simultaneous requests: a random subset of the tenants, in random order, each with 1..max_rows rows."""
    rng = random.Random(f"{seed}/{num_tenants}")
    rounds = []
    for _ in range(num_rounds):
        active = rng.sample(range(num_tenants), rng.randint(1, num_tenants))
        rounds.append(tuple(Part(tenant, rng.randint(1, max_rows), rng.randrange(1 << 30)) for tenant in active))
    return rounds


def modules(model: str, count: int) -> Iterator[nn.Module]:
    """Modules of one architecture, each with weights of its own."""
    return (zoo.build(model, seed) for seed in range(count))


def share_backbone(members: list[nn.Module]) -> None:
    """Give all the weights of the first, except in the last layer that has any: a backbone with several heads."""
    *_, head = (
        name for name, part in members[0].named_modules() if next(part.parameters(recurse=False), None) is not None
    )
    backbone = {key: tensor for key, tensor in members[0].state_dict().items() if key.rpartition(".")[0] != head}
    for member in members[1:]:
        member.load_state_dict(backbone, strict=False)
