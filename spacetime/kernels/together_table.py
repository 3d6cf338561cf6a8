"""The kernel for a launch of several programs, with layers and attributes filled in. Used by backends/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from spacetime.capture.layer import Layer
from spacetime.capture.merge import Launch
from spacetime.capture.merge_contents import Contents
from spacetime.kernels.together_products import TogetherConv, TogetherLinear
from spacetime.kernels.together_rows import TogetherAffine, TogetherEmbedding, TogetherNorm, TogetherPlain

TogetherKernel = Callable[..., dict[int, Any]]  # (spans, rows by call, values by call) -> result by call

_KERNELS: dict[str, Callable[..., TogetherKernel]] = {
    "linear": TogetherLinear,
    "conv": TogetherConv,
    "layer_norm": TogetherNorm,
    "affine": TogetherAffine,
    "embedding": TogetherEmbedding,
}

# Of programs in the form for GPUs. Others need not wait for the import of bound/.
_BOUND = {
    "gpu_linear": ("spacetime.kernels.bound.together", "BoundTogetherLinear"),
    "gpu_conv": ("spacetime.kernels.bound.together_conv", "BoundTogetherConv"),
}


def bind_together(launch: Launch, layers: Sequence[list[Layer]], contents: Contents) -> TogetherKernel:
    """`layers` by member. For what `capture.merge_likeness` says can be called together."""
    calls = launch.calls
    steps = [call.step for call in calls]
    if not steps[0].is_slot:
        gathers = [
            {
                name: (layers[call.member][step.operands[0].index], step.attributes)
                for name, step in call.gathers.items()
                if step.operands[0] is not None
            }
            for call in calls
        ]
        return TogetherPlain(steps, [call.reads for call in calls], gathers, launch.row_dims)
    if steps[0].target in _BOUND:
        own = [layers[call.member] for call in calls]
        return _bound(steps[0].target)(steps, [call.reads for call in calls], own)
    operands = [
        [None if ref is None else layers[call.member][ref.index] for ref in call.step.operands] for call in calls
    ]
    return _KERNELS[steps[0].target](steps, operands, launch.alike, contents)


def _bound(target: str) -> Callable[..., TogetherKernel]:
    module, name = _BOUND[target]
    kernel: Callable[..., TogetherKernel] = getattr(import_module(module), name)
    return kernel
