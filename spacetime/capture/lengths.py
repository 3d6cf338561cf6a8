"""Inputs whose length varies from request to request: what is declared, the lengths programs are made for, padding.

One length per tenant: all declared dimensions have it, like the tokens of `ids` and of `mask`. A program has fixed
shapes, so there is one for each of a few lengths, and a request runs in that of the next length up, padded with
zeros. That is right only where the model itself ignores padding, as with an attention mask, and so it is tried out:
`Cut.find` compares the module's results for a padded input with those for the input itself. Used by capture/ and above.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.capture.named import input_names
from spacetime.errors import InputError, OptionError

Declared = Mapping[str | int, Mapping[int, tuple[int, int]]]  # {"ids": {1: (8, 512)}}: input, dimension, least and most
Args = tuple[Any, ...]


@dataclass(frozen=True)
class Lengths:
    """Which dimensions of which inputs have the tenant's length, and between which bounds it is."""

    least: int
    most: int
    places: tuple[tuple[int, int], ...]  # (position of the input, dimension)

    @staticmethod
    def of(tenant: str, module: nn.Module, example: Args, declared: Declared) -> Lengths:
        """`OptionError` for what cannot be a length."""
        if not isinstance(declared, Mapping) or not all(isinstance(dims, Mapping) for dims in declared.values()):
            next_step = 'declare by input and dimension, as {"ids": {1: (8, 512)}}'
            raise OptionError(f"tenant {tenant!r}: dynamic is {declared!r}", "it names no dimensions", next_step)
        places: dict[tuple[int, int], tuple[int, int]] = {}
        if not isinstance(declared, Mapping) or not all(isinstance(dims, Mapping) for dims in declared.values()):
            facts = "it says for inputs, by name or position, which dimension is how long"
            raise OptionError(f"tenant {tenant!r}: dynamic is {declared!r}", facts, 'as in {"ids": {1: (8, 512)}}')
        for name, dims in declared.items():
            position = _position(tenant, module, example, name)
            for dim, bounds in dims.items():
                places[position, dim] = _bounds(tenant, example[position], name, dim, bounds)
        if not places:
            raise OptionError(f"tenant {tenant!r}: dynamic is empty", "it names no dimension", "leave it out")
        ranges = set(places.values())
        if len(ranges) > 1:
            facts = f"declared: {', '.join(f'{least}..{most}' for least, most in sorted(ranges))}"
            raise OptionError(
                f"tenant {tenant!r}: two lengths vary", facts, "one may: give equal bounds where the length is the same"
            )
        [(least, most)] = ranges
        lengths = Lengths(least, most, tuple(sorted(places)))
        lengths.check(tenant, example)
        return lengths

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The lengths that programs are made for: both bounds and the powers of two between them.

        >>> Lengths(8, 100, ((0, 1),)).steps
        (8, 16, 32, 64, 100)
        """
        powers = [1 << exponent for exponent in range(self.most.bit_length())]
        return tuple(sorted({self.least, self.most, *[step for step in powers if self.least < step < self.most]}))

    def step(self, length: int) -> int:
        """The next length up that has a program."""
        steps = self.steps
        return steps[bisect_left(steps, length)]

    def of_args(self, args: Sequence[Any]) -> int:
        position, dim = self.places[0]
        length: int = args[position].shape[dim]
        return length

    def check(self, tenant: str, args: Sequence[Any]) -> None:
        """`InputError` where an input's length is out of bounds, or not that of the others."""
        sizes = {}
        for position, dim in self.places:
            x = args[position] if position < len(args) else None
            if not isinstance(x, Tensor) or x.ndim <= dim:
                what = f"tenant {tenant!r}: input {position} has no dimension {dim}"
                raise InputError(what, "it was declared to vary", "pass a tensor like the example's")
            sizes[position, dim] = x.shape[dim]
        length = sizes[self.places[0]]
        if any(size != length for size in sizes.values()):
            facts = ", ".join(f"input {position}: {size}" for (position, _), size in sizes.items())
            raise InputError(f"tenant {tenant!r}: lengths disagree", facts, "pass inputs of one length")
        if not self.least <= length <= self.most:
            what = f"tenant {tenant!r}: an input of length {length}"
            raise InputError(
                what, f"declared: {self.least}..{self.most}", "cut it, or add the tenant with wider bounds"
            )

    def resized(self, args: Args, length: int) -> Args:
        """The same inputs at another length, repeated or cut: values that the module accepts."""
        resized = list(args)
        for position, dim in self.places:
            x = resized[position]
            resized[position] = x.index_select(dim, torch.arange(length, device=x.device) % x.shape[dim])
        return tuple(resized)

    def padded(self, args: Args, length: int) -> Args:
        """Zeros behind what is there, up to the length."""
        padded = list(args)
        for position, dim in self.places:
            x = padded[position]
            if x.shape[dim] < length:
                behind = [0, 0] * (x.ndim - 1 - dim) + [0, length - x.shape[dim]]
                padded[position] = torch.nn.functional.pad(x, behind)
        return tuple(padded)


@dataclass(frozen=True, slots=True)
class Cut:
    """Which dimension of each output has the length, so that padding can be cut off again; None: it has none."""

    dims: tuple[int | None, ...]  # by leaf of the output

    @staticmethod
    def find(shorter: Sequence[Any], longer: Sequence[Any], lengths: tuple[int, int]) -> Cut | None:
        """From the outputs for two lengths; None when they do not tell."""
        if len(shorter) != len(longer):
            return None
        dims: list[int | None] = []
        for a, b in zip(shorter, longer, strict=True):
            if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim):
                return None
            differing = [dim for dim in range(a.ndim) if a.shape[dim] != b.shape[dim]]
            if len(differing) > 1 or any((a.shape[dim], b.shape[dim]) != lengths for dim in differing):
                return None
            dims.append(differing[0] if differing else None)
        return Cut(tuple(dims))

    def __call__(self, value: Any, length: int) -> Any:
        """The output without what belongs to padding, in memory of its own."""
        leaves, spec = pytree.tree_flatten(value)
        cut = [
            leaf if dim is None or leaf.shape[dim] == length else leaf.narrow(dim, 0, length).clone()
            for leaf, dim in zip(leaves, self.dims, strict=True)
        ]
        return pytree.tree_unflatten(cut, spec)


def _position(tenant: str, module: nn.Module, example: Args, name: str | int) -> int:
    names = input_names(module)[: len(example)]
    position = name if isinstance(name, int) else names.index(name) if name in names else -1
    if not 0 <= position < len(example):
        facts = f"the example has {', '.join(map(repr, names)) or f'{len(example)} inputs'}"
        raise OptionError(f"tenant {tenant!r}: dynamic names input {name!r}", facts, "name one of these")
    if not isinstance(example[position], Tensor):
        facts = f"it is a {type(example[position]).__name__}"
        raise OptionError(f"tenant {tenant!r}: input {name!r} cannot vary", facts, "tensors of the example can")
    return position


def _bounds(tenant: str, x: Tensor, name: str | int, dim: int, bounds: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(dim, int) or not 1 <= dim < x.ndim:
        facts = f"input {name!r} has {x.ndim} dimensions, the first one carries the rows"
        raise OptionError(
            f"tenant {tenant!r}: dimension {dim!r} of {name!r} cannot vary", facts, f"name 1..{x.ndim - 1}"
        )
    try:
        least, most = bounds
        valid = isinstance(least, int) and isinstance(most, int) and 1 <= least <= most
    except (TypeError, ValueError):
        valid = False
    if not valid:
        facts = f"dimension {dim} of {name!r}: {bounds!r}"
        raise OptionError(f"tenant {tenant!r}: bounds that are none", facts, "give (least, most), both at least 1")
    return least, most
