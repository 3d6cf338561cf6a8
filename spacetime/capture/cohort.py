"""A cohort: tenants with equal signatures, their slots, the layers with their weights. Used by backends/ and above.

Joining is a copy of weights, not a compilation. The tenant's own parameters become views of the slabs, so
nothing is stored twice; leaving gives them memory of their own again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from spacetime.capture.fuse import FusedProgram, TenantValues
from spacetime.capture.layer import Layer
from spacetime.capture.lowerings import fuse
from spacetime.capture.program import Captured
from spacetime.capture.store import Store, read_by_entry
from spacetime.ir import Program

MOST_WAYS = 1024  # to share, that have a number


@dataclass(frozen=True)
class Member:
    """A tenant of a cohort. `weights[i]` are the module's tensors that are weight i (several when tied by storage)."""

    name: str
    slot: int
    weights: tuple[tuple[Tensor, ...], ...]
    seen: tuple[tuple[int, ...], ...]  # how often each of these had been written to when it joined


def version(tensor: Tensor) -> int:
    """How often torch has seen it written to; of inference tensors it does not count that."""
    return -1 if tensor.is_inference() else tensor._version


class Sharing:
    """Numbers for the ways in which slots share entries. A number never comes to mean another way."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}
        self._next = count()

    def number(self, entries: tuple[int, ...]) -> int:
        number = self._numbers.get(entries)
        if number is None:
            if len(self._numbers) >= MOST_WAYS:  # tenants come and go, and most ways never come again
                self._numbers.clear()
            number = self._numbers[entries] = next(self._next)
        return number


class Cohort:
    """`main`: another cohort of the same members, whose program has other shapes (see lengths.py).

    Weights are in the layers of the main one; only what is computed from them for these shapes is in layers of its own.

    `store`: where contents are shared with other cohorts. `keeps_order`: weights keep the memory order that the
    modules gave them, whatever order kernels prefer.
    """

    def __init__(
        self,
        captured: Captured,
        main: Cohort | None = None,
        *,
        store: Store | None = None,
        keeps_order: bool = False,
    ) -> None:
        self.captured = captured
        self.keeps_order: bool = keeps_order if main is None else main.keeps_order
        self.fused: FusedProgram = fuse(captured)
        if self.keeps_order:
            kept = tuple([replace(operand, channels_last=False) for operand in self.fused.operands])
            self.fused = replace(self.fused, operands=kept)
        held = {} if main is None else main._layer_of_weight()
        shareable = set() if store is None else read_by_entry(self.fused)
        self.layers = [
            held.get((operand.weight, operand.channels_last))
            or Layer(
                operand.name,
                channels_last=operand.channels_last,
                store=store if index in shareable else None,
                owner=captured.program.signature,
            )
            for index, operand in enumerate(self.fused.operands)
        ]
        self._borrowed = set(held.values())
        self.members: dict[str, Member] = {}
        # Numbers of layers must mean the same to all programs that read them.
        self._sharing: Sharing = Sharing() if main is None else main._sharing

    @property
    def reorders(self) -> bool:
        """Do weights of its members lie in another order than the modules gave them?"""
        return any(operand.channels_last for operand in self.fused.operands)

    @property
    def program(self) -> Program:
        return self.captured.program

    def join(self, name: str, weights: Sequence[Sequence[Tensor]]) -> Member:
        """Give a tenant a slot and store its weights; `weights` in the order of Program.weights."""
        seen = tuple(tuple(version(tensor) for tensor in tensors) for tensors in weights)
        member = Member(name, self._free_slot(), tuple(tuple(tensors) for tensors in weights), seen)
        values = TenantValues(self.captured, [self._source(index, member) for index in range(len(member.weights))])
        with torch.no_grad():
            contents = [operand.compute(values) for operand in self.fused.operands]
            for layer, operand, content in zip(self.layers, self.fused.operands, contents, strict=True):
                layer.put(member.slot, content, () if operand.weight is None else member.weights[operand.weight])
        self.members[name] = member
        self._number_sharing()
        return member

    def follow(self, member: Member) -> None:
        """Take in a member of the main cohort, in the same slot."""
        values = TenantValues(self.captured, [self._source(index, member) for index in range(len(member.weights))])
        with torch.no_grad():
            for layer, operand in zip(self.layers, self.fused.operands, strict=True):
                if layer not in self._borrowed:
                    layer.put(member.slot, operand.compute(values))
        self.members[member.name] = member
        self._number_sharing()

    def unfollow(self, name: str) -> None:
        """The member is about to leave the main cohort."""
        member = self.members.pop(name)
        for layer in self.layers:
            if layer not in self._borrowed:
                layer.drop(member.slot)
        self._number_sharing()

    def leave(self, name: str) -> None:
        """Hand the tenant's weights back to its module. No lane of the tenant may be running."""
        member = self.members.pop(name)
        for layer, operand in zip(self.layers, self.fused.operands, strict=True):
            if operand.weight is not None:
                layer.hand_back(member.slot)
            layer.drop(member.slot)
        self._number_sharing()

    def compact(self) -> list[Tensor]:
        """Give back memory that tenants have left behind; what lanes that run may still read of it."""
        own = [layer.slab for layer in self.layers if layer not in self._borrowed and layer.entries]
        with torch.no_grad():
            replaced = [slab.compact() for slab in own]
        return [stack for stack in replaced if stack is not None]

    # -- accounts -------------------------------------------------------------------------------------

    def resident_bytes(self) -> int:
        """Bytes that the slabs hold for all members, shared entries counted once; guests are counted where they lie."""
        return sum(layer.slab.num_stored * layer.slab.entry_bytes for layer in self.layers)

    def guest_bytes(self) -> dict[str, int]:
        """Bytes of its weights that lie in the slabs of other cohorts, by these."""
        found = Counter[str]()
        for layer in self.layers:
            for content in layer.slab.guests():
                found[content.home.owner] += layer.slab.entry_bytes
        return dict(found)

    def shared_layers(self, name: str) -> int:
        """Layers of a tenant whose content some other tenant has as well."""
        slot = self.members[name].slot
        return sum(
            layer.is_shared(slot)
            for layer, operand in zip(self.layers, self.fused.operands, strict=True)
            if operand.weight is not None
        )

    def _layer_of_weight(self) -> dict[tuple[int | None, bool], Layer]:
        pairs = zip(self.fused.operands, self.layers, strict=True)
        return {
            (operand.weight, operand.channels_last): layer for operand, layer in pairs if operand.weight is not None
        }

    # -- storage --------------------------------------------------------------------------------------

    def _source(self, index: int, member: Member) -> Tensor:
        own = member.weights[index]
        return own[0].detach() if own else self.captured.weights[index].tensor

    def _free_slot(self) -> int:
        used = {member.slot for member in self.members.values()}
        return next(slot for slot in range(len(used) + 1) if slot not in used)

    def _number_sharing(self) -> None:
        """Layers shared by the same slots get the same number, so that their row layouts are computed once."""
        for layer in self.layers:
            layer.sharing = self._sharing.number(tuple(layer.entries))
