"""Recorded runs of a module: its results for reference, and a fingerprint of what it did. Used by runtime/.

Modules with equal fingerprints did the same operations on the same shapes with the same dataflow, for the
example and for its first row alone (x / x.shape[0] is not x / 2), so the second and later tenants of a cohort
need no export. The runs are real, on a copy of the example; buffers and attributes they changed are put back.
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
from spacetime.capture.python_state import attributes, put_back, written

StorageKey = tuple[Any, ...]


@dataclass(frozen=True)
class Recording:
    fingerprint: str
    outputs: list[Any]  # flat
    first_row: list[Any] | None  # the outputs for the first row alone; None if the module refuses a single row
    weights: tuple[StorageKey, ...]  # by first use
    wrote: str | None  # what the runs have changed: of the module's own state, or of its inputs


def owned_tensors(module: nn.Module) -> dict[StorageKey, tuple[Tensor, ...]]:
    """Parameters and buffers by the memory they occupy; several objects may look at the same memory."""
    owned: dict[StorageKey, dict[int, Tensor]] = {}
    for _, tensor in _named_tensors(module):
        owned.setdefault(storage_key(tensor), {})[id(tensor)] = tensor
    return {key: tuple(tensors.values()) for key, tensors in owned.items()}


def record(module: nn.Module, args: tuple[Any, ...]) -> Recording:
    """Run the module on the example and on its first row. Exceptions of the former pass through."""
    args = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)
    named = {f"its inputs: {index}": leaf for index, leaf in enumerate(pytree.tree_leaves(args))}
    named |= {f"its own state: {name}": tensor for name, tensor in _named_tensors(module)}
    versions = {name: (tensor, tensor._version) for name, tensor in named.items() if _has_version(tensor)}
    buffers = [_Buffer.of(path, part, name) for path, part in module.named_modules() for name in part._buffers]
    kept = attributes(module)
    digest, outputs, weights = _run(module, args)
    first_kept = attributes(module)  # what it makes once, it may keep
    try:
        alone, first_row, _ = _run(module, pytree.tree_map(_first_row, args))
    except Exception as error:
        alone, first_row = f"refuses a single row: {type(error).__name__}", None
    changed = [name for name, (tensor, version) in versions.items() if tensor._version != version]
    state = [buffer.path for buffer in buffers if buffer.put_back()]
    attributes_written = written(first_kept, attributes(module))
    if attributes_written:
        put_back(module, kept)
    changed += [f"its own state: {name}" for name in (*state, *attributes_written)]
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


def _has_version(tensor: Any) -> bool:
    """Of a tensor that counts its changes."""
    return isinstance(tensor, Tensor) and not tensor.is_inference()


@dataclass(frozen=True)
class _Buffer:
    """A buffer as it was, by the part that has it."""

    path: str
    part: nn.Module
    name: str
    tensor: Tensor | None
    content: Tensor | None

    @staticmethod
    def of(path: str, part: nn.Module, name: str) -> _Buffer:
        tensor = part._buffers[name]
        content = None if tensor is None else tensor.clone()
        return _Buffer(f"{path}.{name}" if path else name, part, name, tensor, content)

    def put_back(self) -> bool:
        """Has it changed? Batch norm writes its statistics without counting a version."""
        is_replaced = self.part._buffers.get(self.name) is not self.tensor
        if is_replaced:
            self.part._buffers[self.name] = self.tensor
        if self.tensor is None or self.content is None or content_hash(self.tensor) == content_hash(self.content):
            return is_replaced
        self.tensor.data.copy_(self.content)
        return True


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
