"""Weights of modules that cannot be captured, in slabs, those of alike modules side by side. For backends/ and above.

Without a program nobody knows which call will use which parameter, so a call's weight is found by its address. Modules
are alike when they are of one class and have equal parameters by name, shape and dtype: then their calls are likely to
meet. As in a cohort (cohort.py), a module's parameters become views of the slabs, and get memory of their own again
when it leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spacetime.capture.layer import Layer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies."""

    layer: Layer
    entry: int


class Arena:
    """One structure. Its owner serialises the changes; lanes may look things up meanwhile."""

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._members: dict[str, tuple[int, nn.Module]] = {}
        self._places: dict[int, Place] = {}  # by address

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def find(self, weight: Tensor) -> Place | None:
        """None for what is no whole weight of a member: a slice of one, or something computed."""
        place = self._places.get(weight.data_ptr())
        if place is None or weight.shape != place.layer.stack.shape[1:]:
            return None
        return place

    def stacks(self) -> list[Tensor]:
        """The memory that all weights lie in now; a slab that grows gets other memory."""
        return [layer.stack for layer in self._layers.values()]

    def join(self, name: str, module: nn.Module) -> None:
        used = {slot for slot, _ in self._members.values()}
        slot = next(slot for slot in range(len(used) + 1) if slot not in used)
        with torch.no_grad():
            for path, weight in _weights(module):
                layer = self._layers.setdefault(path, Layer(path))
                layer.put(slot, weight.detach())
        self._members[name] = (slot, module)
        self._point()

    def leave(self, name: str) -> None:
        """No lane of the tenant may be running."""
        slot, module = self._members[name]
        with torch.no_grad():
            for path, weight in _weights(module):
                weight.data = self._layers[path].copy_out(slot)
        self.drop(name)

    def drop(self, name: str) -> None:
        """The module has memory of its own again."""
        slot, module = self._members.pop(name)
        for path, _ in _weights(module):
            self._layers[path].drop(slot)
        self._point()

    def resident_bytes(self) -> int:
        return sum(layer.slab.num_entries * layer.slab.entry_bytes for layer in self._layers.values())

    def _point(self) -> None:
        """Slabs may have moved: let everybody's parameters look at them, and note their addresses anew."""
        places: dict[int, Place] = {}
        for slot, module in self._members.values():
            for path, weight in _weights(module):
                layer = self._layers[path]
                held = layer.of_slot(slot)
                if weight.data_ptr() != held.data_ptr():
                    weight.data = held
                places[held.data_ptr()] = Place(layer, layer.entries[slot])
        self._places = places


def structure(module: nn.Module) -> str | None:
    """Equal for modules that are alike; None for one without weights that could be shared in a launch."""
    shapes = [(path, tuple(weight.shape), str(weight.dtype)) for path, weight in _weights(module)]
    if not shapes:
        return None
    kind = type(module)
    return hashlib.sha256(repr((kind.__module__, kind.__qualname__, shapes)).encode()).hexdigest()[:12]


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of linears and convolutions, by path. A tied one counts once; one made in inference mode cannot be a view."""
    seen: set[int] = set()
    for path, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            for name in ("weight", "bias"):
                tensor = getattr(part, name)
                if tensor is not None and not tensor.is_inference() and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}", tensor
