"""An ONNX file as a module with inputs that fit it: `load_onnx`. Used by the profiler and its commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from spacetime.errors import CaptureError, OptionError
from spacetime.profiler.onnx.external import locations_of
from spacetime.profiler.onnx.file import check_memory, read_graph, read_proto
from spacetime.profiler.onnx.fold import Folded, fold
from spacetime.profiler.onnx.graph import Graph, Input
from spacetime.profiler.onnx.module import OnnxGraph
from spacetime.profiler.onnx.rewrite import rewrite

# What keeps the numbers in an integer input as they are, on the way to the table that they index.
_PASS = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Expand Transpose Slice Concat Dropout".split())
EXAMPLE_ROWS = 2
_LOOKUPS = frozenset("Gather GatherElements".split())


@dataclass(frozen=True)
class OnnxModel:
    """An imported file. `module` takes the inputs in order and can be captured; its weights are its parameters."""

    module: nn.Module
    inputs: tuple[Input, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    limits: Mapping[str, int]  # one more than the largest index that an integer input may hold
    opset: int
    producer: str
    path: Path
    beside: tuple[str, ...]  # locations of the files with its external data, from its folder

    def example(self, rows: int = EXAMPLE_ROWS, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of `rows` rows: normal floats, indices in the range of their tables, ones for masks."""
        if rows < 1:
            raise OptionError(f"an example of {rows} rows", "a request has at least one row", "ask for 1 or more")
        generator = torch.Generator().manual_seed(seed)
        return tuple(self._draw(each, rows, generator) for each in self.inputs)

    def _draw(self, each: Input, rows: int, generator: torch.Generator) -> Tensor:
        shape = (rows, *each.shape)
        if each.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(each.dtype)
        if each.name in self.limits:
            return torch.randint(self.limits[each.name], shape, generator=generator).to(each.dtype)
        return torch.ones(shape, dtype=each.dtype)


def load_onnx(path: str | os.PathLike[str], sizes: Mapping[str, int] | None = None) -> OnnxModel:
    """Read a file; `sizes` fixes dynamic dimensions other than the rows, by their names in the file.

    Everything is checked before any work: an operation that is not supported, a file that is damaged, too large or
    not what it says raises `CaptureError` or `OptionError`.
    """
    path = Path(path)
    sizes = dict(sizes or {})
    wrong = [name for name, size in sizes.items() if size < 1]
    if wrong:
        raise OptionError(f"dimension {wrong[0]!r} of {sizes[wrong[0]]}", "a size is at least 1", "give another")
    proto = read_proto(path)
    graph = read_graph(path, proto, sizes)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    producer = " ".join(filter(None, (proto.producer_name, proto.producer_version)))
    beside = locations_of(proto.graph)
    del proto  # as large as the weights
    check_memory(path, EXAMPLE_ROWS * sum(prod(each.shape) * each.dtype.itemsize for each in graph.inputs))
    try:
        folded = fold(graph)
    except CaptureError as error:
        raise CaptureError(f"{path}: {error.what}", error.facts, error.next_step) from error
    module = OnnxGraph(rewrite(folded)).eval()
    return OnnxModel(
        module=module,
        inputs=graph.inputs,
        input_names=tuple(each.name for each in graph.inputs),
        output_names=graph.outputs,
        limits=_limits(folded),
        opset=opset,
        producer=producer,
        path=path,
        beside=beside,
    )


def _limits(folded: Folded) -> dict[str, int]:
    """For integer inputs that are looked up: the smallest size of what they index."""
    graph = folded.graph
    limits = {each.name: _limit(folded, graph, each.name) for each in graph.inputs if not each.dtype.is_floating_point}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _limit(folded: Folded, graph: Graph, name: str) -> int | None:
    holding = {name}
    found: list[int] = []
    for node in graph.nodes:
        if node.op in _LOOKUPS and node.inputs[1] in holding:
            shape = folded.shape(node.inputs[0])
            size = shape[node.attribute("axis", 0)] if shape else None
            found += [size] if isinstance(size, int) else []
        elif node.op in _PASS and holding.intersection(node.inputs):
            holding.update(node.outputs)
    return min(found, default=None)
