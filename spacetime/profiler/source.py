"""The operations behind a program: a captured graph that runs on real values, kernel by kernel. The profiler only.

Programs are torch-free. `remember` keeps what is needed to run one for as long as the program itself lives, and
`recall` finds it for that program and for its equals.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from spacetime.capture.export import Exported
from spacetime.capture.families import op_name
from spacetime.capture.program import Captured
from spacetime.errors import CaptureError
from spacetime.ir import Program
from spacetime.profiler.site import Call, Sample, Site
from spacetime.profiler.straight import Step, Straight, straight

# Shape checks of torch.export: no part of the computation.
_CHECKS = ("_assert", "sym_constrain")


@dataclass(frozen=True, eq=False)
class Source:
    """A graph with its weights and an example of its inputs. Whoever runs it turns gradients off."""

    exported: Exported
    kernel_nodes: tuple[str, ...]
    example: tuple[Tensor, ...]  # the leaves

    def kernels(self, rows: int) -> Iterator[tuple[int, Call]]:
        """Run once on so many rows; for each kernel, when it has run, (its index, a call that repeats it).

        The arguments are those of this run, and values go when their last reader is done: a call is good only until
        the next one is asked for.
        """
        values = self._values(rows)
        for step in self._steps:
            call = step.bind(values)
            step.finish(values, call())
            if step.kernel is not None:
                yield step.kernel, call

    def time(self, rows: int, site: Site) -> Sequence[Sample]:
        """Run once on so many rows: how long each kernel took, and last, all that lies between them."""
        if any(step.function is None for step in self._steps):
            for _ in self.kernels(rows):
                pass
        values = list(self._values(rows).values())
        return site.time_run(partial(self._straight, values), len(self.kernel_nodes))

    def on(self, device: str) -> Source:
        """The same with weights, inputs and what the graph makes on that device; itself, if they are there."""
        there = torch.device(device)
        tensors = [*(weight.tensor for weight in self.exported.weights.values()), *self.example]
        if all(tensor.device == there for tensor in tensors):
            return self
        example = tuple(leaf.to(there) for leaf in self.example)
        return Source(_moved(self.exported, there), self.kernel_nodes, example)

    def _values(self, rows: int) -> dict[fx.Node, Any]:
        """Weights, and the example's rows over and over."""
        values: dict[fx.Node, Any] = {node: weight.tensor for node, weight in self.exported.weights.items()}
        for node, leaf in zip(self.exported.inputs, self.example, strict=True):
            values[node] = leaf.index_select(0, torch.arange(rows, device=leaf.device) % leaf.shape[0])
        return values

    @cached_property
    def _straight(self) -> Straight:
        return straight([*self.exported.weights, *self.exported.inputs], self._steps, self.exported.outputs)

    @cached_property
    def _steps(self) -> list[Step]:
        nodes = [
            node
            for node in self.exported.graph.nodes
            if node.op == "call_function" and not op_name(node.target).startswith(_CHECKS)
        ]
        last_reader = {source: node for node in nodes for source in node.all_input_nodes}
        last_reader |= dict.fromkeys(filter(lambda each: isinstance(each, fx.Node), self.exported.outputs))
        index_of = {name: index for index, name in enumerate(self.kernel_nodes)}
        return [
            Step(
                node=node,
                kernel=index_of.get(node.name),
                dead=[source for source in node.all_input_nodes if last_reader[source] is node],
            )
            for node in nodes
        ]


def remember(captured: Captured, example: tuple[Any, ...]) -> None:
    """Until the program goes, and with it the module's weights, if nobody else has them."""
    leaves = tuple(leaf.detach() for leaf in pytree.tree_leaves(example))
    source = Source(captured.exported, captured.kernel_nodes, leaves)
    program = captured.program
    known = _sources.setdefault(program.signature, {})
    known[id(program)] = source
    weakref.finalize(program, _forget, program.signature, id(program)).atexit = False


def recall(program: Program) -> Source:
    known = _sources.get(program.signature)
    if not known:
        raise CaptureError(
            f"program {program.signature} cannot be measured",
            "it was not captured in this process, so its operations and weights are not here",
            "capture its module first, or profile it on a modelled device",
        )
    return known.get(id(program)) or next(iter(known.values()))


def _moved(exported: Exported, device: torch.device) -> Exported:
    """A copy of the graph; a weight that has two names is moved once."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op != "output":
            copy = copies[node] = graph.node_copy(node, copies.__getitem__)
            copy.args, copy.kwargs = fx.node.map_aggregate(
                (copy.args, copy.kwargs), lambda value: device if isinstance(value, torch.device) else value
            )
    tensors = {id(weight.tensor): weight.tensor for weight in exported.weights.values()}
    moved = {number: tensor.detach().to(device) for number, tensor in tensors.items()}
    return replace(
        exported,
        graph=graph,
        inputs=tuple(copies[node] for node in exported.inputs),
        weights={
            copies[node]: replace(weight, tensor=moved[id(weight.tensor)]) for node, weight in exported.weights.items()
        },
        outputs=tuple(copies[each] if isinstance(each, fx.Node) else each for each in exported.outputs),
    )


_sources: dict[str, dict[int, Source]] = {}  # by signature and identity of the programs that live


def _forget(signature: str, program_id: int) -> None:
    known = _sources[signature]
    del known[program_id]
    if not known:
        del _sources[signature]
