"""Which operations of an exported graph torch decomposes, and which of its writes in place are none to anybody.

A write to memory that the operation before it has made, and that has no other name, is an operation that answers
instead: relu_(conv(x)) is relu(conv(x)). Used by capture/expand.py only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import default_decompositions

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_BY_HAND = (_COMPOSITE, torch._C.DispatchKey.Autograd)  # kernels in Python that stand for others
_KEPT_ALWAYS = {torch.ops.aten.upsample_bilinear2d.vec, torch.ops.aten.upsample_nearest2d.vec}

# Composite operations do not say what they do to memory: an einsum may be a transposition. These make their own.
_MAKERS = frozenset(
    """linear matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm layer_norm
    group_norm instance_norm""".split()
)

# Of these, the answer is all that a write in place is about.
_POINTWISE = frozenset(
    """add sub mul div pow neg abs exp sqrt rsqrt relu relu6 hardtanh hardswish hardsigmoid leaky_relu elu celu silu
    mish sigmoid tanh clamp clamp_min clamp_max masked_fill""".split()
)


def is_composite(target: OpOverload) -> bool:
    """Does torch decompose it unasked? That is what it does to composite operations that may alias or write."""
    return target not in _kept() and _stands_for_others(target)


def _stands_for_others(target: OpOverload) -> bool:
    by_hand = any(key in target.py_kernels for key in _BY_HAND)
    return by_hand or torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), _COMPOSITE)


@cache
def _kept() -> frozenset[Any]:
    """Composite operations that torch decomposes when asked to only: the default table holds all but two."""
    return frozenset(default_decompositions()) | _KEPT_ALWAYS


def answering(node: fx.Node) -> OpOverload | None:
    """aten.relu_ -> aten.relu, where nobody can tell the difference; None where somebody might."""
    if not _writes_to_first(node.target) or not node.args:
        return None
    written = node.args[0]
    assert isinstance(node.target, OpOverload)
    name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
    answer = getattr(getattr(torch.ops.aten, name, None), node.target._overloadname, None)
    if name not in _POINTWISE or answer is None or not isinstance(written, fx.Node) or not _is_fresh(written):
        return None
    others = [reader for reader in written.users if reader is not node]
    return answer if all(reader < node and _answers_anew(reader.target) for reader in others) else None


def _writes_to_first(target: Any) -> bool:
    if not isinstance(target, OpOverload) or target.namespace != "aten" or not target._schema.name.endswith("_"):
        return False
    first, *others = [argument.alias_info for argument in target._schema.arguments]
    return first is not None and first.is_write and not any(others)


def _is_fresh(node: fx.Node) -> bool:
    """Memory of its own that has this name only."""
    return node.op == "call_function" and (_answers_anew(node.target) or answering(node) is not None)


def _answers_anew(target: Any) -> bool:
    """Its results share no memory with what it reads."""
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return False
    schema = target._schema
    if any(value.alias_info is not None for value in (*schema.arguments, *schema.returns)):
        return False
    name = schema.name.removeprefix("aten::")
    return name in _MAKERS or not (_stands_for_others(target) or "unsafe" in name)
