"""A captured graph as steps, and as one straight Python function that times its kernels. Only source.py imports it.

The function does what the model does between its kernels, too: it enters as many modules, makes the views, and drops
values after their last use. An interpreter would take longer for that than small kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from spacetime.capture.families import op_name
from spacetime.profiler.site import LONG_US, Call

# Cheaper than the operation itself, and what models call.
_METHODS: dict[str, Callable[..., Any]] = {"sym_size": Tensor.size, "_unsafe_view": Tensor.view}

Straight = Callable[..., tuple[Any, ...]]  # outputs of (values of the placeholders, then what site.Run is told)


@dataclass(eq=False)
class Step:
    """One operation of the graph."""

    node: fx.Node
    kernel: int | None
    dead: list[fx.Node]  # nobody reads them after it
    function: Callable[..., Any] | None = None  # chosen when it is first called

    def bind(self, values: dict[fx.Node, Any]) -> Call:
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), values.__getitem__)
        if self.function is None:
            self.function = _entry_point(self.node.target, args, kwargs)
        return partial(self.function, *args, **kwargs)

    def finish(self, values: dict[fx.Node, Any], result: Any) -> None:
        values[self.node] = result
        for source in self.dead:
            del values[source]

    @property
    def modules(self) -> tuple[str, ...]:
        """The calls of modules that it is in, from the outermost."""
        return tuple(self.node.meta.get("nn_module_stack") or ())


def straight(placeholders: Sequence[fx.Node], steps: Iterable[Step], outputs: Sequence[Any]) -> Straight:
    """All steps in a row; every step has been called before."""
    writer = _Writer(placeholders)
    text = writer.source(steps, outputs)
    exec(compile(text, "<profiled program>", "exec"), writer.constants)
    return cast(Straight, writer.constants["run"])


class _Empty(nn.Module):
    """What calling a module costs by itself."""

    def forward(self, value: Any) -> Any:
        return value


class _Writer:
    def __init__(self, placeholders: Sequence[fx.Node]) -> None:
        self.names = {node: f"p{index}" for index, node in enumerate(placeholders)}
        self.constants: dict[str, Any] = {"enter": _Empty().eval()}

    def source(self, steps: Iterable[Step], outputs: Sequence[Any]) -> str:
        lines = ["def run(placeholders, now, interruptions, read):"]
        if self.names:
            lines.append(f"    {', '.join(self.names.values())}, = placeholders")
        inside: tuple[str, ...] = ()
        for step in steps:
            entered = sum(module not in inside for module in step.modules)
            inside = step.modules or inside
            lines += ["    enter(None)"] * entered
            lines += [f"    {line}" for line in self._step(step)]
        lines.append(f"    return ({''.join(f'{self._render(output)}, ' for output in outputs)})")
        return "\n".join(lines)

    def _step(self, step: Step) -> list[str]:
        name = self.names[step.node] = f"v{len(self.names)}"
        node = step.node
        args = [self._render(arg) for arg in node.args]
        args += [f"{key}={self._render(value)}" for key, value in node.kwargs.items()]
        lines = [f"{name} = {self._constant(step.function)}({', '.join(args)})"]
        if step.kernel is not None:
            reading = f"read(({step.kernel}, start, end, interruptions() if end - start > {LONG_US} else None))"
            lines = ["start = now()", *lines, "end = now()", reading]
        if step.dead:
            lines.append(f"del {', '.join(self.names[source] for source in step.dead)}")
        return lines

    def _render(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._render, value))}]"
        if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name


def _entry_point(target: Any, args: Any, kwargs: Any) -> Callable[..., Any]:
    """torch's own function or method, where it has one: it costs a third of torch.ops, and it is what models call."""
    name = op_name(target)
    for function in (
        getattr(torch._C._VariableFunctions, name, None),
        getattr(torch._C._nn, name, None),
        _METHODS.get(name) or getattr(Tensor, name, None),
    ):
        if function is not None:
            try:
                function(*args, **kwargs)
            except TypeError:  # another signature than the operation's
                continue
            return cast(Callable[..., Any], function)
    return cast(Callable[..., Any], target)
