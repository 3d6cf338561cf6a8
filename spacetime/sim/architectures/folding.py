"""What fusing does to convolutions: the norm and the activation behind one join it. Used by sim/ only; no torch.

A plain module launches convolution, batch norm and ReLU; a fused lane launches one kernel, as capture/lowerings
decides. Arithmetic stays, traffic and launches go.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from spacetime.ir import Kernel, Program
from spacetime.sim.architectures.builder import BATCH_NORM, ITEMSIZE, signature

ACTIVATIONS = frozenset(("relu", "hardtanh", "relu6"))


def folded(program: Program) -> Program:
    """The program as its fused lanes run it. Norms that follow no convolution stay."""
    readers = Counter(dep for kernel in program.kernels for dep in kernel.deps)
    kernels: list[Kernel] = []
    moved: dict[int, int] = {}  # index before -> index of the kernel that computes it now
    tail: dict[int, str] = {}  # what a folded convolution ends with, by its new index
    for kernel in program.kernels:
        before = kernel.deps[0] if len(kernel.deps) == 1 and readers[kernel.deps[0]] == 1 else None
        target = None if before is None else moved[before]
        if target is not None and _joins(kernel, tail.get(target)):
            kernels[target] = _joined(kernels[target], kernel)
            moved[kernel.index], tail[target] = target, kernel.op
            continue
        index = moved[kernel.index] = len(kernels)
        if kernel.kind == "conv":
            tail[index] = kernel.op
        deps = tuple(sorted({moved[dep] for dep in kernel.deps}))
        kernels.append(replace(kernel, index=index, deps=deps))
    signed = signature(program.inputs, program.outputs, program.weights, kernels)
    return replace(program, signature=signed, kernels=tuple(kernels))


def _joins(kernel: Kernel, end: str | None) -> bool:
    """`end`: what the kernel before ends with so far; None if that is no convolution."""
    if end is None or end in ACTIVATIONS:
        return False
    return kernel.op in ACTIVATIONS or (kernel.op == BATCH_NORM and end != BATCH_NORM)


def _joined(conv: Kernel, kernel: Kernel) -> Kernel:
    """The convolution followed by `kernel`, whose result it now writes."""
    itemsize = ITEMSIZE[conv.outputs[0].dtype]
    between = conv.outputs[0].size(1) * itemsize  # is neither written nor read
    result = kernel.outputs[0].size(1) * itemsize
    weights = tuple(sorted({*conv.weights, *kernel.weights}))
    channels = (
        kernel.inputs[1:3] if kernel.op == BATCH_NORM else ()
    )  # of the four statistics a scale and a shift remain
    return replace(
        conv,
        inputs=conv.inputs + channels,
        outputs=kernel.outputs[:1],
        weights=weights,
        attributes=f"{conv.attributes}{kernel.op}{kernel.attributes}",
        flops_per_row=conv.flops_per_row + kernel.flops_per_row,
        bytes_per_row=conv.bytes_per_row - between + result,
        weight_bytes=conv.weight_bytes + sum(spec.size(1) * itemsize for spec in channels),
    )
