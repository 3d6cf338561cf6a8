"""Recorded runs of a module: its results for reference, and a fingerprint of what it did. Used by runtime/.

Modules with equal fingerprints did the same operations on the same shapes with the same dataflow, for the
example and for its first row alone (x / x.shape[0] is not x / 2), so the second and later tenants of a cohort
need no export. The runs are real; buffers they changed are put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spacetime.capture.program import content_hash, storage_key, tensor_spec

StorageKey = tuple[Any, ...]


@dataclass(frozen=True)
class Recording:
    fingerprint: str
    outputs: list[Any]  # flat
    first_row: list[Any] | None  # the outputs for the first row alone; None if the module refuses a single row
    weights: tuple[StorageKey, ...]  # by first use
    wrote_state: str | None  # the parameter or buffer that the run has changed


def owned_tensors(module: nn.Module) -> dict[StorageKey, tuple[Tensor, ...]]:
    """Parameters and buffers by the memory they occupy; several objects may look at the same memory."""
    owned: dict[StorageKey, dict[int, Tensor]] = {}
    for _, tensor in _named_tensors(module):
        owned.setdefault(storage_key(tensor), {})[id(tensor)] = tensor
    return {key: tuple(tensors.values()) for key, tensors in owned.items()}


def record(module: nn.Module, args: tuple[Any, ...]) -> Recording:
    """Run the module on the example and on its first row. Exceptions of the former pass through."""
    tensors = dict(_named_tensors(module))
    versions = {name: tensor._version for name, tensor in tensors.items() if not tensor.is_inference()}
    saved = {name: buffer.clone() for name, buffer in module.named_buffers()}
    digest, outputs, weights = _run(module, args)
    try:
        alone, first_row, _ = _run(module, pytree.tree_map(_first_row, args))
    except Exception as error:
        alone, first_row = f"refuses a single row: {type(error).__name__}", None
    changed = [name for name, version in versions.items() if tensors[name]._version != version]
    changed += _put_back(module, saved)
    return Recording(f"{digest}-{alone}", outputs, first_row, weights, changed[0] if changed else None)


def _run(module: nn.Module, args: tuple[Any, ...]) -> tuple[str, list[Any], tuple[StorageKey, ...]]:
    """What the module did, its flat outputs, the weights by first use."""
    recorder = _Recorder(owned_tensors(module), pytree.tree_leaves(args))
    with torch.no_grad(), recorder:
        result = module(*args)
    leaves, spec = pytree.tree_flatten(result)
    recorder.line(f"out {spec} {recorder.describe(leaves)}")
    return recorder.digest(), leaves, tuple(recorder.weights)


def _first_row(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _put_back(module: nn.Module, saved: dict[str, Tensor]) -> list[str]:
    """The buffers whose content has changed. Batch norm writes its statistics without counting a version."""
    changed = [name for name, buffer in module.named_buffers() if content_hash(buffer) != content_hash(saved[name])]
    for name, buffer in module.named_buffers():
        if name in changed:
            buffer.data.copy_(saved[name])
    return changed


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


class _Recorder(TorchDispatchMode):
    """Prints every dispatched call with its tensors numbered by first appearance."""

    def __init__(self, owned: dict[StorageKey, tuple[Tensor, ...]], inputs: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owned = owned
        self._labels: dict[int, str] = {}
        self._alive: list[Tensor] = []  # ids are unique only while the tensors live
        self._hash = hashlib.blake2b(digest_size=16)
        self.weights: dict[StorageKey, str] = {}
        for leaf in inputs:
            if isinstance(leaf, Tensor):
                self._label(leaf, f"in:{tensor_spec(leaf)}{tuple(leaf.stride())}")
        self.line(self.describe(inputs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = f"{func}{self.describe(args)}{self.describe(kwargs)}"
        result = func(*args, **kwargs)
        for item in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(item, Tensor):
                self._label(item, "v")
        self.line(f"{call}->{self.describe(result)}")
        return result

    def line(self, text: str) -> None:
        self._hash.update(text.encode())
        self._hash.update(b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()

    def describe(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return self._labels.get(id(value)) or self._found(value)
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(self.describe, value))}]"
        if isinstance(value, dict):
            return ",".join(f"{key}={self.describe(value[key])}" for key in sorted(value))
        return value.hex() if isinstance(value, float) else repr(value)

    def _found(self, tensor: Tensor) -> str:
        """A tensor that no call has produced: a weight of the module, or a constant of its code."""
        key = storage_key(tensor)
        if key not in self._owned:
            return self._label(tensor, f"constant:{tensor_spec(tensor)}{content_hash(tensor)}")
        label = self.weights.setdefault(key, f"weight{len(self.weights)}:{tensor_spec(tensor)}{tuple(tensor.stride())}")
        return self._label(tensor, label, numbered=False)

    def _label(self, tensor: Tensor, text: str, numbered: bool = True) -> str:
        self._alive.append(tensor)
        label = self._labels[id(tensor)] = f"{text}#{len(self._labels)}" if numbered else text
        return label
