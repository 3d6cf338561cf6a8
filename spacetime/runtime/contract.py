"""What a tenant accepts: arity, shapes, dtypes, device, rows. Checked at submit: a bad input hurts nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call
from spacetime.capture.export import MAX_ROWS
from spacetime.capture.lengths import Lengths
from spacetime.errors import InputError

MOST_KINDS = 64  # of inputs that are remembered: row counts above all

Kind = tuple[
    torch.Size | torch.dtype | torch.device | torch.layout, ...
]  # all that is checked of a plain tuple of tensors, in turn
Accepted = tuple[Call, int, int]  # and its number of rows, and the bytes of its tensors


@dataclass(frozen=True)
class InputContract:
    """The example's structure. `strict` False (opaque tenants): the module itself judges shapes and dtypes."""

    tenant: str
    in_spec: pytree.TreeSpec
    like: tuple[Any, ...]  # the example's leaves, as meta tensors where they are tensors
    strict: bool
    device: str
    is_flat: bool  # the example is a plain tuple of tensors
    known: dict[Kind, tuple[int, int]] = field(default_factory=dict, compare=False)  # what fits: its rows, its bytes

    @staticmethod
    def of(tenant: str, example: tuple[Any, ...], *, strict: bool, device: str) -> InputContract:
        leaves, in_spec = pytree.tree_flatten(example)
        like = tuple(leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        is_flat = all(isinstance(arg, Tensor) for arg in example)
        return InputContract(tenant, in_spec, like, strict, device, is_flat)

    def accept(self, args: tuple[Any, ...]) -> Accepted:
        """The call, its rows and bytes; `InputError` names what does not fit. What did once is not checked again."""
        if not self.is_flat:
            return self._judge(args)
        kind: list[Any] = []
        for arg in args:
            if type(arg) is not Tensor or arg.is_nested:
                return self._judge(args)
            kind += (arg.shape, arg.dtype, arg.device, arg.layout)
        size = self.known.get(tuple(kind))
        if size is not None:
            return Call(args, args), size[0], size[1]
        accepted = self._judge(args)
        if len(self.known) < MOST_KINDS:
            self.known[tuple(kind)] = accepted[1:]
        return accepted

    def _judge(self, args: tuple[Any, ...]) -> Accepted:
        leaves = self._leaves(args)
        for index, leaf in enumerate(leaves):
            if self.strict and isinstance(leaf, Tensor):
                self._check_layout(index, leaf)
        rows = self._rows(leaves)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._check(index, leaf, rows)
            elif self.strict:
                what = f"input {index} is a {type(leaf).__name__}"
                raise self._error(what, "the example has a tensor there", "pass a tensor")
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        return Call(args, tensors), rows, sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _leaves(self, args: tuple[Any, ...]) -> list[Any]:
        if self.is_flat and len(args) == len(self.like) and all(isinstance(arg, Tensor) for arg in args):
            return list(args)  # the common case, without walking a tree
        leaves, spec = pytree.tree_flatten(args)
        if self.strict and spec != self.in_spec:
            raise self._error(
                f"takes {self.in_spec.num_leaves} inputs of the example's structure, got {len(leaves)}",
                f"example: {_structure(self.like)}; got: {_structure(leaves)}",
                "call it like module(*example)",
            )
        return leaves

    def _rows(self, leaves: list[Any]) -> int:
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.ndim:
                if not 1 <= leaf.shape[0] <= MAX_ROWS:
                    raise self._error(
                        f"got {leaf.shape[0]} rows", f"a request has 1..{MAX_ROWS}", "split it, or leave it out"
                    )
                return int(leaf.shape[0])
        return 1

    def _check_layout(self, index: int, tensor: Tensor) -> None:
        """Rows are joined as they lie in memory. Nested tensors have no shape that could be looked at."""
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not tensor.is_nested:
            what = f"input {index} is a {type(tensor).__name__}"
            raise self._error(what, "its memory is not that of a plain tensor, which fused kernels read", "convert it")
        layout = "nested" if tensor.is_nested else tensor.layout
        like = self.like[index].layout
        if layout != like:
            raise self._error(
                f"input {index} is {layout}", f"the example is {like}", "pass a tensor like the example's"
            )

    def _check(self, index: int, tensor: Tensor, rows: int) -> None:
        if tensor.device.type != "cpu" and str(tensor.device) != self.device:  # from the host it is brought there
            raise self._error(
                f"input {index} is on {tensor.device}", f"the runtime is on {self.device}", "move it there"
            )
        if not self.strict:
            return
        like = self.like[index]
        if tensor.dtype != like.dtype:
            raise self._error(f"input {index} is {tensor.dtype}", f"the example is {like.dtype}", "convert it")
        if tensor.ndim != like.ndim or tensor.shape[1:] != like.shape[1:]:
            expected = ", ".join(["rows", *map(str, like.shape[1:])])
            lacks_rows = tensor.shape == like.shape[1:]
            raise self._error(
                f"input {index} has shape {tuple(tensor.shape)}",
                f"expected ({expected})",
                "pass x[None], a row by itself" if lacks_rows else "add another tenant with an example of this shape",
            )
        if tensor.shape[0] != rows:
            raise self._error(
                f"input {index} has {tensor.shape[0]} rows, input 0 has {rows}",
                "rows must agree",
                "pass one row per sample in every input",
            )

    def _error(self, what: str, facts: str = "", next_step: str = "") -> InputError:
        return InputError(f"tenant {self.tenant!r}: {what}", facts, next_step)


class VaryingContract:
    """Inputs of any length within the declared bounds: one contract per length."""

    def __init__(self, tenant: str, example: tuple[Any, ...], lengths: Lengths, *, strict: bool, device: str) -> None:
        self._tenant = tenant
        self._like = tuple(leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in example)
        self._lengths = lengths
        self._make = partial(InputContract.of, tenant, strict=strict, device=device)
        self._contracts: dict[int, InputContract] = {}

    def accept(self, args: tuple[Any, ...]) -> Accepted:
        self._lengths.check(self._tenant, args)
        length = self._lengths.of_args(args)
        contract = self._contracts.get(length)
        if contract is None:
            contract = self._contracts[length] = self._make(self._lengths.resized(self._like, length))
        return contract.accept(args)


Contract = InputContract | VaryingContract


def contract_of(
    tenant: str, example: tuple[Any, ...], lengths: Lengths | None, *, strict: bool, device: str
) -> Contract:
    if lengths is None:
        return InputContract.of(tenant, example, strict=strict, device=device)
    return VaryingContract(tenant, example, lengths, strict=strict, device=device)


def _structure(leaves: Any) -> str:
    return ", ".join(
        f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves
    )
