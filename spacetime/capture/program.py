"""Exported graph -> ir.Program and signature. Used by capture/ only.

The signature hashes operations, literals, shapes, dtypes, strides, the sharing of weights inside the
module and the structure of inputs and outputs; it ignores the values and the names of weights. Weights
are numbered by first use, so equal signatures mean: the same numbering.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from spacetime.capture.export import Exported, Weight
from spacetime.capture.families import bind_arguments, op_name
from spacetime.capture.rows import RowProof
from spacetime.ir import Kernel, Program, Rows, TensorSpec

# Operations that only relabel memory: no launch, hence no kernel.
VIEWS = frozenset(
    """view reshape _unsafe_view flatten unflatten permute transpose t movedim expand squeeze unsqueeze slice select
    split split_with_sizes unsafe_split chunk unbind detach alias clone getitem sym_size lift_fresh_copy dropout
    feature_dropout contiguous""".split()
)
GEMMS = frozenset("linear matmul bmm mm addmm baddbmm scaled_dot_product_attention".split())
LOOKUPS = frozenset(["embedding"])
CONVS = frozenset("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d".split())


@dataclass(frozen=True)
class Captured:
    """A captured module: the torch-free program, and what is needed to build a fused program from it."""

    program: Program
    exported: Exported
    proof: RowProof
    weights: tuple[Weight, ...]  # in the order of Program.weights
    weight_index: dict[fx.Node, int]
    kernel_nodes: tuple[str, ...]  # the node behind every kernel

    def without_contents(self, indices: Collection[int]) -> Captured:
        """The same with mere shapes for these weights: each tenant brings its own, and may take them away again."""
        kept = {index: _shape_of(self.weights[index]) for index in indices}
        weights = tuple([kept.get(index, weight) for index, weight in enumerate(self.weights)])
        by_node = {
            node: kept.get(self.weight_index.get(node, -1), weight) for node, weight in self.exported.weights.items()
        }
        return replace(self, weights=weights, exported=replace(self.exported, weights=by_node))


def build_program(exported: Exported, proof: RowProof) -> Captured:
    return _Builder(exported, proof).build()


class _Builder:
    def __init__(self, exported: Exported, proof: RowProof) -> None:
        self.exported = exported
        self.proof = proof
        self.labels: dict[fx.Node, str] = {}
        self.lines: list[str] = []
        self.weights: list[Weight] = []
        self.weight_index: dict[fx.Node, int] = {}
        self._by_storage: dict[tuple[Any, ...], int] = {}
        self.kernels: list[Kernel] = []
        self.kernel_nodes: list[str] = []
        self.producers: dict[fx.Node, tuple[int, ...]] = {}  # kernels behind a value, looking through views

    def build(self) -> Captured:
        for index, node in enumerate(self.exported.inputs):
            self.labels[node] = f"input{index}"
            self.producers[node] = ()
            self.lines.append(f"input{index}:{self.proof.spec(node)}")
        for node in self.exported.graph.nodes:
            if node.op == "call_function" and not op_name(node.target).startswith(("_assert", "sym_constrain")):
                self._operation(node)
        self._structure()
        program = Program(
            signature=hashlib.blake2b("\n".join(self.lines).encode(), digest_size=8).hexdigest(),
            inputs=tuple(self.proof.spec(node) for node in self.exported.inputs),
            outputs=tuple(self.proof.spec(node) for node in self.exported.outputs if isinstance(node, fx.Node)),
            weights=tuple(tensor_spec(weight.tensor) for weight in self.weights),
            kernels=tuple(self.kernels),
        )
        return Captured(
            program,
            self.exported,
            self.proof,
            tuple(self.weights),
            self.weight_index,
            tuple(self.kernel_nodes),
        )

    def _operation(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.exported.weights and source not in self.labels:
                self._number(source)
        self.labels[node] = f"v{len(self.labels)}"
        self.lines.append(f"{self.labels[node]}={node.target}({self._print(node.args)}|{self._print(node.kwargs)})")
        deps = tuple(sorted({k for source in node.all_input_nodes for k in self.producers.get(source, ())}))
        launches = op_name(node.target) not in VIEWS and node not in self.proof.constants and _has_tensor(node)
        if launches:
            self.kernels.append(self._kernel(node, deps))
            self.kernel_nodes.append(node.name)
            deps = (self.kernels[-1].index,)
        self.producers[node] = deps

    def _number(self, node: fx.Node) -> None:
        """The same storage seen through two names is one weight."""
        weight = self.exported.weights[node]
        index = self._by_storage.setdefault(storage_key(weight.tensor), len(self.weights))
        if index == len(self.weights):
            self.weights.append(weight)
            content = content_hash(weight.tensor) if weight.is_constant else ""
            self.lines.append(f"weight{index}:{tensor_spec(weight.tensor)}{tuple(weight.tensor.stride())}{content}")
        self.weight_index[node] = index
        self.labels[node] = f"weight{index}"

    def _structure(self) -> None:
        self.lines.append(f"in {self.exported.in_spec}")
        self.lines.append(f"out {self.exported.out_spec} {self._print(self.exported.outputs)}")

    def _print(self, value: Any) -> str:
        """A canonical form: labels for values, hexadecimal floats, sorted keys."""
        if isinstance(value, fx.Node):
            return self.labels[value]
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(self._print, value))}]"
        if isinstance(value, dict):
            return ",".join(f"{key}={self._print(value[key])}" for key in sorted(value))
        return value.hex() if isinstance(value, float) else repr(value)

    # -- kernels --------------------------------------------------------------------------------------

    def _kernel(self, node: fx.Node, deps: tuple[int, ...]) -> Kernel:
        name = op_name(node.target)
        weights = tuple(sorted({self.weight_index[s] for s in node.all_input_nodes if s in self.weight_index}))
        operands = [source for source in node.all_input_nodes if self.proof.specs.get(source) is not None]
        inputs = tuple(spec for source in operands for spec in _flat(self.proof.specs[source]))
        outputs = _flat(self.proof.specs[node])
        moving = [spec for spec in inputs + outputs if spec.row_dim is not None]
        weight_bytes = sum(
            spec.size(1) * _itemsize(spec)
            for source, specs in ((source, self.proof.specs[source]) for source in operands)
            if source in self.proof.constants
            for spec in _flat(specs)
        )
        if name in LOOKUPS:  # reads what it writes, not the whole table
            moving += [spec for spec in outputs if spec.row_dim is not None]
            weight_bytes = 0
        return Kernel(
            index=len(self.kernels),
            name=_readable_name(node),
            op=name,
            kind="gemm" if name in GEMMS else "conv" if name in CONVS else "other",
            inputs=inputs,
            outputs=outputs,
            weights=weights,
            deps=deps,
            attributes=self._attributes(node),
            flops_per_row=_flops(node, name, self.proof, outputs),
            bytes_per_row=sum(spec.size(1) * _itemsize(spec) for spec in moving),
            weight_bytes=weight_bytes,
        )

    def _attributes(self, node: fx.Node) -> str:
        literals = {key: value for key, value in bind_arguments(node).items() if not _holds_node(value)}
        return f"{{{self._print(literals)}}}" if literals else ""


def _shape_of(weight: Weight) -> Weight:
    """Its type and place, too, in the memory of one number."""
    return replace(weight, tensor=weight.tensor.new_empty(()).expand(weight.tensor.shape))


def storage_key(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))


def content_hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()


def tensor_spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _has_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (Tensor, list, tuple)) and node.target is not operator.getitem


def _flat(specs: Any) -> tuple[TensorSpec, ...]:
    items = specs if isinstance(specs, tuple) else (specs,)
    return tuple(spec for spec in items if isinstance(spec, TensorSpec))


def _holds_node(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_node(item) for item in value)
    return isinstance(value, fx.Node)


def _readable_name(node: fx.Node) -> str:
    """The path of the submodule that made the call, if export recorded it."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry and entry[0]]
    return str(paths[-1]) if paths else node.name


def _itemsize(spec: TensorSpec) -> int:
    return int(getattr(torch, spec.dtype).itemsize)


def _flops(node: fx.Node, name: str, proof: RowProof, outputs: tuple[TensorSpec, ...]) -> int:
    """Multiply-adds count as two; everything that is not a matrix product counts one per output entry."""
    written = sum(spec.size(1) for spec in outputs)
    args = bind_arguments(node)
    if name in CONVS:
        weight = proof.spec(args["weight"])
        # Every output entry (transposed: every input entry) meets the weights of one output (input) channel.
        entries = proof.spec(args["input"]).size(1) if "transpose" in name else written
        return 2 * entries * (weight.size(1) // int_dim(weight, 0))
    if name == "scaled_dot_product_attention":
        return 4 * proof.spec(args["query"]).size(1) * int_dim(proof.spec(args["key"]), -2)
    contracted = {"linear": "input", "matmul": "self", "mm": "self", "bmm": "self", "addmm": "mat1"}.get(name)
    if contracted:
        return 2 * written * int_dim(proof.spec(args[contracted]), -1)
    return written


def int_dim(spec: TensorSpec, index: int) -> int:
    dim = spec.shape[index]
    return dim.multiple if isinstance(dim, Rows) else dim
