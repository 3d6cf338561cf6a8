"""Who has written to weights that are frozen while their module is a tenant. Used by runtime/.

It is found where torch counts it (optimisers, `load_state_dict`, in-place operations) and where other memory has taken
the place of a weight (`.to()`, `.data = ...`, `load_state_dict(assign=True)`); not what is written by way of `.data`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain

from torch import Tensor, nn

from spacetime.capture.cohort import Cohort, Member, version
from spacetime.capture.slab import Content

Written = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]  # by tenant: which weights, and who else has them


def written(cohorts: Iterable[Cohort], modules: Mapping[str, nn.Module]) -> Written:
    """`modules`: the tenants', by name."""
    names: dict[str, dict[str, None]] = {}
    touched: dict[str, list[Content]] = defaultdict(list)
    having: dict[int, list[str]] = defaultdict(list)  # tenants by content
    for cohort in cohorts:
        for member in cohort.members.values():
            contents = _contents(cohort, member)
            for held in contents.values():
                having[id(held)].append(member.name)
            present = {id(tensor) for tensor in _tensors(modules[member.name])}
            for index, tensors in enumerate(member.weights):
                content = contents.get(index)
                in_place = any(version(each) != seen for each, seen in zip(tensors, member.seen[index], strict=True))
                if in_place or any(_is_replaced(tensor, content, present) for tensor in tensors):
                    names.setdefault(member.name, {})[cohort.captured.weights[index].name] = None
                if in_place and content is not None:
                    touched[member.name].append(content)
    return {name: (tuple(found), _others(name, touched[name], having)) for name, found in names.items()}


def _others(name: str, touched: Iterable[Content], having: Mapping[int, list[str]]) -> tuple[str, ...]:
    found = dict.fromkeys(chain.from_iterable(having[id(content)] for content in touched))
    return tuple([other for other in found if other != name])


def _contents(cohort: Cohort, member: Member) -> dict[int, Content]:
    """By weight, those that lie in slabs as they are."""
    pairs = zip(cohort.fused.operands, cohort.layers, strict=True)
    return {
        operand.weight: layer.slab.content(layer.entries[member.slot])
        for operand, layer in pairs
        if operand.weight is not None
    }


def _is_replaced(tensor: Tensor, content: Content | None, present: set[int]) -> bool:
    is_elsewhere = content is not None and tensor.data_ptr() != content.view.data_ptr() and not tensor.is_inference()
    return is_elsewhere or id(tensor) not in present


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())
