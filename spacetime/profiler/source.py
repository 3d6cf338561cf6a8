"""The operations behind a program: a captured graph that runs on real values, kernel by kernel. The profiler only.

Programs are torch-free. `remember` keeps what is needed to run one for as long as the program itself lives, and
`recall` finds it for that program and for its equals.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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
from spacetime.profiler.straight import Reading, Run, Step, straight

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

    def time(self, rows: int, site: Site) -> list[Sample]:
        """Run once on so many rows: how long each kernel took, and last, all that lies between them.

        That is the calls of modules, views, memory that is given back; not the readings of the clock.
        """
        if any(step.function is None for step in self._steps):
            for _ in self.kernels(rows):
                pass
        values = list(self._values(rows).values())
        readings: list[Reading] = []
        interruptions = at_first = site.interruptions()
        begin_us = site.now_us()
        self._straight(values, site.now_us, site.interruptions, readings.append)
        whole_us = site.now_us() - begin_us
        samples = [Sample(0.0, False)] * (len(self.kernel_nodes) + 1)
        for kernel, start_us, end_us, now_interruptions in readings:
            # What interrupted the steps since the kernel before is put down to this one.
            disturbed = now_interruptions is not None and now_interruptions > interruptions
            samples[kernel] = Sample(end_us - start_us, disturbed)
            interruptions = now_interruptions or interruptions
        between_us = whole_us - sum(sample.us for sample in samples) - len(readings) * site.reading_us
        samples[-1] = Sample(max(between_us, 0.0), site.interruptions() > at_first)
        return samples

    def _values(self, rows: int) -> dict[fx.Node, Any]:
        """Weights, and the example's rows over and over."""
        values: dict[fx.Node, Any] = {node: weight.tensor for node, weight in self.exported.weights.items()}
        for node, leaf in zip(self.exported.inputs, self.example, strict=True):
            values[node] = leaf.index_select(0, torch.arange(rows) % leaf.shape[0])
        return values

    @cached_property
    def _straight(self) -> Run:
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


_sources: dict[str, dict[int, Source]] = {}  # by signature and identity of the programs that live


def _forget(signature: str, program_id: int) -> None:
    known = _sources[signature]
    del known[program_id]
    if not known:
        del _sources[signature]
