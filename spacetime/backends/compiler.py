"""Fused program -> one Python function over torch calls. Used by backends/.

The function is generated source, so a step costs its call and nothing else; values are dropped after
their last use. `source` prints it for reading and debugging.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.families import op_name
from spacetime.capture.fuse import FusedProgram, Ref, RowCount, Step
from spacetime.capture.layer import Layer
from spacetime.kernels import RowMap, SlotKernel, bind
from spacetime.kernels.prepacked_conv import PrepackedConv
from spacetime.kernels.vector_conv import VectorConv


@dataclass(frozen=True)
class Compiled:
    """A fused program as a function (rows: RowMap, *inputs) -> outputs, and the slot kernels it calls."""

    run: Callable[..., tuple[Any, ...]]
    kernels: tuple[SlotKernel, ...]

    @property
    def prepacked_bytes(self) -> int:
        """Second copies of weights that its kernels keep."""
        return sum(kernel.packed_bytes for kernel in self.kernels if isinstance(kernel, PrepackedConv | VectorConv))

    @property
    def prepacked_entries(self) -> tuple[tuple[Layer, int], ...]:
        """Of which entries of which layers; each copy takes as much as the entry."""
        packing = [kernel for kernel in self.kernels if isinstance(kernel, PrepackedConv | VectorConv)]
        return tuple([found for kernel in packing for found in kernel.packed_entries])


# torch's own entry points dispatch three times faster than torch.ops; same schema, hence same arguments.
_FAST: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": torch.add,
    "aten.sub.Tensor": torch.sub,
    "aten.mul.Tensor": torch.mul,
    "aten.div.Tensor": torch.div,
    "aten.relu.default": torch.relu,
    "aten.sigmoid.default": torch.sigmoid,
    "aten.tanh.default": torch.tanh,
    "aten.cat.default": torch.cat,
    "aten.select.int": torch.select,
    "aten.permute.default": torch.permute,
    "aten.transpose.int": torch.transpose,
    "aten.unsqueeze.default": torch.unsqueeze,
    "aten.squeeze.dims": torch.squeeze,
    "aten.squeeze.dim": torch.squeeze,
    "aten.split_with_sizes.default": torch.split_with_sizes,
    "aten.unsafe_split.Tensor": torch.unsafe_split,
    "aten.split.Tensor": torch.split,
    "aten.unbind.int": torch.unbind,
    "aten.softmax.int": torch.softmax,
    "aten.matmul.default": torch.matmul,
    "aten.bmm.default": torch.bmm,
    "aten.max_pool2d.default": torch.max_pool2d,
    "aten.scaled_dot_product_attention.default": torch.nn.functional.scaled_dot_product_attention,
    # Strides between steps may differ from the exported ones, so a view may need a copy.
    "aten.view.default": torch.reshape,
    "aten._unsafe_view.default": torch.reshape,
    "aten.reshape.default": torch.reshape,
}


def compile_program(program: FusedProgram, layers: list[Layer], *, prepack: bool = False) -> Compiled:
    """The program as a function; layers are bound now, which entries they hold is looked up at every call."""
    writer = _Writer(program, layers, prepack)
    text = writer.source()
    scope: dict[str, Any] = dict(writer.constants)
    exec(compile(text, "<fused program>", "exec"), scope)
    return Compiled(scope["run"], tuple(writer.kernels))


def source(program: FusedProgram, layers: list[Layer]) -> str:
    """The generated source, for people."""
    return _Writer(program, layers, prepack=False).source()


class _Writer:
    def __init__(self, program: FusedProgram, layers: list[Layer], prepack: bool) -> None:
        self.program = program
        self.prepack = prepack
        self.layers = layers
        self.names: dict[str, str] = {name: f"in{index}" for index, name in enumerate(program.inputs)}
        self.constants: dict[str, Any] = {"RowMap": RowMap}
        self.kernels: list[SlotKernel] = []
        self.last_use = _last_uses(program)

    def source(self) -> str:
        inputs = "".join(f", in{index}" for index in range(len(self.program.inputs)))
        lines = [f"def run(rows{inputs}):", "    n = rows.total"]
        for index, step in enumerate(self.program.steps):
            lines.append(f"    {self._assign(step, index)}")
            dead = [self.names[name] for name in self.last_use.get(index, ())]
            if dead:
                lines.append(f"    del {', '.join(dead)}")
        outputs = "".join(f"{self._render(output)}, " for output in self.program.outputs)
        lines.append(f"    return ({outputs})")
        return "\n".join(lines) + "\n"

    def _assign(self, step: Step, index: int) -> str:
        name = self.names[step.out] = f"v{index}"
        if step.is_slot:
            self.kernels.append(bind(step, self.layers, prepack=self.prepack))
            kernel = self._constant(self.kernels[-1], f"{step.target}{index}")
            return f"{name} = {kernel}({', '.join(['rows', *map(self._render, step.args)])})  # {step.node}"
        if step.target is operator.getitem:
            return f"{name} = {self._render(step.args[0])}[{step.args[1]!r}]"
        target = self._constant(_FAST.get(str(step.target), step.target), f"{op_name(step.target)}_{index}")
        args = [self._render(arg) for arg in step.args]
        args += [f"{key}={self._render(value)}" for key, value in step.kwargs.items()]
        return f"{name} = {target}({', '.join(args)})  # {step.node}"

    def _render(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self.names[value.name]
        if isinstance(value, RowCount):
            return "n" if value.multiple == 1 else f"{value.multiple} * n"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._render, value))}]"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        kind = "tensor" if isinstance(value, Tensor) else "value"
        return self._constant(value, f"{kind}{len(self.constants)}")

    def _constant(self, value: Any, name: str) -> str:
        self.constants[name] = value
        return name


def _last_uses(program: FusedProgram) -> dict[int, list[str]]:
    """Step index -> values that no later step, and no output, reads."""
    last: dict[str, int] = {}
    for index, step in enumerate(program.steps):
        for name in _names(step.args) + _names(tuple(step.kwargs.values())):
            last[name] = index
    kept = set(_names(program.outputs))
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in kept:
            dead.setdefault(index, []).append(name)
    return dead


def _names(value: Any) -> list[str]:
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _names(item)]
    return []
