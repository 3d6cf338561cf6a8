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
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spacetime.capture.export import Exported
from spacetime.capture.families import op_name
from spacetime.capture.program import Captured
from spacetime.errors import CaptureError
from spacetime.ir import Program
from spacetime.profiler.around import Around, wholes
from spacetime.profiler.programs import Surroundings
from spacetime.profiler.site import Call, Sample, Site
from spacetime.profiler.straight import Step, Straight, straight

QUICK_US = 5_000.0  # a run that takes longer than that fills the caches by itself
# Shape checks of torch.export: no part of the computation.
_CHECKS = ("_assert", "sym_constrain")


@dataclass(frozen=True, eq=False)
class Source:
    """A graph with its weights and an example of its inputs. Whoever runs it turns gradients off."""

    exported: Exported
    kernel_nodes: tuple[str, ...]
    example: tuple[Tensor, ...]  # the leaves
    module: nn.Module | None = None  # what was captured, where it can be called beside its graph

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

    @property
    def has_code(self) -> bool:
        """Is what lies between its kernels the module's own code? Else it is the straight function's."""
        return self._around is not None

    @property
    def wholes(self) -> tuple[tuple[int, int], ...]:
        """The first kernel and the last of every operation that the module calls as one."""
        return tuple((each.first, each.last) for each in self._around.wholes) if self._around is not None else ()

    @property
    def shown(self) -> Surroundings | None:
        """The two of above, where they are known without a run."""
        is_known = self.module is None or "_around" in vars(self)
        return Surroundings(self.has_code, self.wholes) if is_known else None

    def time(self, rows: int, site: Site) -> Sequence[Sample]:
        """Run once on so many rows: how long each kernel took, then all that lies between them, then the wholes."""
        self._choose()
        inputs = self._inputs(rows)
        samples = self._time_straight(site, inputs)
        if self._around is None:
            return samples
        if sum(sample.us for sample in samples) < QUICK_US:
            samples = self._time_straight(site, inputs)  # the first found the caches as the calls below left them
        return [*samples[:-1], *self._around.time(inputs, site, samples, partial(self._time_straight, site))]

    def _time_straight(self, site: Site, inputs: Sequence[Tensor]) -> Sequence[Sample]:
        weights = [weight.tensor for weight in self.exported.weights.values()]
        return site.time_run(partial(self._straight, [*weights, *inputs]), len(self.kernel_nodes))

    def _choose(self) -> None:
        """A first run chooses the functions behind the steps."""
        if any(step.function is None for step in self._steps):
            for _ in self.kernels(max(1, self.example[0].shape[0] if self.example else 1)):
                pass

    @cached_property
    def _around(self) -> Around | None:
        if self.module is None:
            return None
        with torch.no_grad():
            self._choose()
            found = Around.of(self.module, self.exported.in_spec, wholes(self._steps), self.example)
            if found is not None:
                try:
                    weights = [weight.tensor for weight in self.exported.weights.values()]
                    self._straight([*weights, *(leaf[:0] for leaf in self.example)], _zero, _zero, _nowhere)
                except Exception:  # an operation that refuses to have no rows
                    return None
        return found

    def on(self, device: str) -> Source:
        """The same with weights, inputs and what the graph makes on that device; itself, if they are there."""
        there = torch.device(device)
        tensors = [*(weight.tensor for weight in self.exported.weights.values()), *self.example]
        if all(tensor.device == there for tensor in tensors):
            return self
        example = tuple(leaf.to(there) for leaf in self.example)
        return Source(_moved(self.exported, there), self.kernel_nodes, example)

    def without_code(self) -> Source:
        """Where a device runs behind the host, what the module's code takes is hidden behind kernels."""
        return replace(self, module=None)

    def _values(self, rows: int) -> dict[fx.Node, Any]:
        """Weights, and the example's rows over and over."""
        values: dict[fx.Node, Any] = {node: weight.tensor for node, weight in self.exported.weights.items()}
        return values | dict(zip(self.exported.inputs, self._inputs(rows), strict=True))

    def _inputs(self, rows: int) -> list[Tensor]:
        return [leaf.index_select(0, torch.arange(rows, device=leaf.device) % leaf.shape[0]) for leaf in self.example]

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


def remember(captured: Captured, example: tuple[Any, ...], module: nn.Module | None = None) -> None:
    """Until the program goes, and with it the module's weights, if nobody else has them."""
    leaves = tuple(leaf.detach() for leaf in pytree.tree_leaves(example))
    source = Source(captured.exported, captured.kernel_nodes, leaves, module)
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


def _zero() -> int:
    return 0


def _nowhere(reading: Any) -> None:
    """Of a run that is not timed."""


_sources: dict[str, dict[int, Source]] = {}  # by signature and identity of the programs that live


def _forget(signature: str, program_id: int) -> None:
    known = _sources[signature]
    del known[program_id]
    if not known:
        del _sources[signature]
