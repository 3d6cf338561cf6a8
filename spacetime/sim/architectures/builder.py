"""A small language in which an architecture writes down its kernels. Used by sim/architectures only; no torch.

It emits what capture/ would find in the same module: the operations that launch something, with their shapes,
costs and dependencies. What only relabels memory is a `view`. Layers and weights are named by their path, and
as in a module the same path is the same weight.

>>> b = Builder()
>>> x = b.input(Rows(1), 16)
>>> print(b.program(b.pointwise("relu", b.linear("head", x, 4))))  # doctest: +ELLIPSIS
program ...: 2 kernels, 2 weights
     0 linear                   head                                     -> float32[rows, 4]
     1 relu                     relu                                     -> float32[rows, 4]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spacetime.ir import Dim, Kernel, Program, Rows, TensorSpec

BATCH_NORM = "_native_batch_norm_legit_no_training"

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1}


class Raw(str):
    """A literal that is printed without quotes, such as torch.bool."""

    def __repr__(self) -> str:
        return str(self)


Literal = int | float | bool | str | None | Sequence[int]
Attributes = dict[str, Literal]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An input, a weight, or what a kernel wrote; `producers` are the kernels behind it, looking through views."""

    spec: TensorSpec
    producers: tuple[int, ...] = ()
    weight: int | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.spec.shape

    @property
    def is_constant(self) -> bool:
        """Only weights and what follows from them have no rows."""
        return self.spec.row_dim is None

    def size(self, dim: int) -> int:
        """Entries of one row along a dimension."""
        extent = self.spec.shape[dim]
        return extent.multiple if isinstance(extent, Rows) else extent

    @property
    def num_bytes(self) -> int:
        """Of one row, or of the whole weight."""
        return self.spec.size(1) * ITEMSIZE[self.spec.dtype]


class Builder:
    def __init__(self) -> None:
        self._inputs: list[TensorSpec] = []
        self._weights: list[TensorSpec] = []
        self._parameters: dict[str, Value] = {}
        self._kernels: list[Kernel] = []
        self._path: list[str] = []

    def program(self, *outputs: Value) -> Program:
        inputs, specs = tuple(self._inputs), tuple(value.spec for value in outputs)
        weights, kernels = tuple(self._weights), tuple(self._kernels)
        return Program(signature(inputs, specs, weights, kernels), inputs, specs, weights, kernels)

    @contextmanager
    def scope(self, *path: object) -> Iterator[None]:
        """Everything inside is named below this path."""
        self._path.append(".".join(map(str, path)))
        try:
            yield
        finally:
            self._path.pop()

    # -- values ---------------------------------------------------------------------------------------

    def input(self, *shape: Dim, dtype: str = "float32") -> Value:
        value = Value(_spec(shape, dtype))
        self._inputs.append(value.spec)
        return value

    def parameter(self, name: str, *shape: int) -> Value:
        """The weight of this path; numbered by first use, as in a captured program."""
        path = ".".join((*self._path, name))
        known = self._parameters.get(path)
        if known is None:
            known = self._parameters[path] = Value(_spec(shape, "float32"), weight=len(self._weights))
            self._weights.append(known.spec)
        assert known.shape == shape, f"{path} is a weight of shape {known.shape}, not {shape}"
        return known

    def view(self, source: Value, *shape: Dim) -> Value:
        """The same memory, or a part of it, in another shape. A part of a weight is a weight no more."""
        return Value(_spec(shape, source.spec.dtype), source.producers)

    # -- kernels --------------------------------------------------------------------------------------

    def kernel(
        self,
        op: str,
        inputs: Sequence[Value],
        outputs: Sequence[TensorSpec],
        attributes: Attributes,
        *,
        kind: str = "other",
        flops_per_row: int | None = None,
    ) -> Value:
        """Any operation; costs one flop per entry it writes unless told. Returns its first output."""
        operands = list(dict.fromkeys(inputs))  # an operand that is read twice is loaded once
        index = len(self._kernels)
        results = [spec.size(1) * ITEMSIZE[spec.dtype] for spec in outputs if spec.row_dim is not None]
        moving = [value.num_bytes for value in operands if not value.is_constant] + results
        weight_bytes = sum(value.num_bytes for value in operands if value.is_constant)
        if op == "embedding":  # reads what it writes, not the whole table
            moving, weight_bytes = moving + results, 0
        written = sum(spec.size(1) for spec in outputs)
        self._kernels.append(
            Kernel(
                index=index,
                name=".".join(self._path) or op,
                op=op,
                kind=kind,
                inputs=tuple(value.spec for value in operands),
                outputs=tuple(outputs),
                weights=tuple(sorted(value.weight for value in operands if value.weight is not None)),
                deps=tuple(sorted({producer for value in operands for producer in value.producers})),
                attributes=_print_attributes(attributes),
                flops_per_row=written if flops_per_row is None else flops_per_row,
                bytes_per_row=sum(moving),
                weight_bytes=weight_bytes,
            )
        )
        return Value(outputs[0], (index,))

    def linear(self, name: str, x: Value, features: int, *, bias: bool = True) -> Value:
        with self.scope(name):
            weight = self.parameter("weight", features, x.size(-1))
            return self.matrix_product(x, weight, self.parameter("bias", features) if bias else None)

    def matrix_product(self, x: Value, weight: Value, bias: Value | None = None) -> Value:
        """x @ weight.T + bias."""
        out = _spec((*x.shape[:-1], weight.size(0)), x.spec.dtype)
        operands, attributes = _optional([x, weight], bias=bias)
        flops = 2 * out.size(1) * x.size(-1)
        return self.kernel("linear", operands, [out], attributes, kind="gemm", flops_per_row=flops)

    def matmul(self, left: Value, right: Value) -> Value:
        """[..., m, k] @ [..., k, n]; both depend on the inputs."""
        out = _spec((*left.shape[:-1], right.size(-1)), left.spec.dtype)
        flops = 2 * out.size(1) * left.size(-1)
        return self.kernel("matmul", [left, right], [out], {}, kind="gemm", flops_per_row=flops)

    def attention(self, query: Value, key: Value, value: Value, mask: Value | None, *, causal: bool = False) -> Value:
        """Scaled dot-product attention in one kernel."""
        operands, attributes = _optional([query, key, value], attn_mask=mask)
        attributes |= {"dropout_p": 0.0, "enable_gqa": False, "is_causal": causal, "scale": None}
        flops = 4 * query.spec.size(1) * key.size(-2)
        op = "scaled_dot_product_attention"
        return self.kernel(op, operands, [query.spec], attributes, kind="gemm", flops_per_row=flops)

    def conv(
        self,
        name: str,
        x: Value,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> Value:
        """A square 2d convolution of [rows, channels, height, width]."""
        out = _image(x, channels, kernel, stride, padding)
        with self.scope(name):
            weight = self.parameter("weight", channels, x.size(1) // groups, kernel, kernel)
            operands, attributes = _optional([x, weight], bias=self.parameter("bias", channels) if bias else None)
            attributes |= {"dilation": [1, 1], "groups": groups, "padding": [padding] * 2, "stride": [stride] * 2}
            flops = 2 * out.size(1) * (weight.spec.size(1) // channels)
            return self.kernel("conv2d", operands, [out], attributes, kind="conv", flops_per_row=flops)

    def batch_norm(self, name: str, x: Value) -> Value:
        """In eval mode, as a kernel of its own; `folding` merges it into the convolution before it."""
        with self.scope(name):
            statistics = ("weight", "bias", "running_mean", "running_var")
            operands = [x, *(self.parameter(each, x.size(1)) for each in statistics)]
            saved = _spec((0,), x.spec.dtype)  # what training would keep
            return self.kernel(BATCH_NORM, operands, [x.spec, saved, saved], {"eps": 1e-5, "momentum": 0.1})

    def layer_norm(self, name: str, x: Value, *, eps: float = 1e-5) -> Value:
        with self.scope(name):
            operands = [x, *(self.parameter(each, x.size(-1)) for each in ("weight", "bias"))]
            attributes: Attributes = {"cudnn_enable": False, "eps": eps, "normalized_shape": [x.size(-1)]}
            return self.kernel("layer_norm", operands, [x.spec], attributes)

    def embedding(self, name: str, indices: Value, entries: int, width: int) -> Value:
        with self.scope(name):
            table = self.parameter("weight", entries, width)
            out = _spec((*indices.shape, width), "float32")
            attributes: Attributes = {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}
            return self.kernel("embedding", [table, indices], [out], attributes)

    def pointwise(self, op: str, *operands: Value, **attributes: Literal) -> Value:
        """One entry from the same entry of every (broadcast) operand."""
        out = _spec(_broadcast([value.shape for value in operands]), operands[0].spec.dtype)
        return self.kernel(op, operands, [out], attributes)

    def add(self, one: Value, other: Value) -> Value:
        return self.pointwise("add", one, other, alpha=1)

    def convert(self, x: Value, dtype: str) -> Value:
        attributes: Attributes = {"dtype": Raw(f"torch.{dtype}"), "non_blocking": False}
        attributes |= dict.fromkeys(("device", "layout", "memory_format", "pin_memory"))
        return self.kernel("_to_copy", [x], [_spec(x.shape, dtype)], attributes)

    def zeros(self, *shape: Dim) -> Value:
        """A state to begin with. Capture notes the device as well; a program for the simulator has none."""
        attributes: Attributes = {"dtype": Raw("torch.float32"), "layout": None, "pin_memory": False}
        return self.kernel("zeros", [], [_spec(shape, "float32")], attributes)

    def softmax(self, x: Value) -> Value:
        return self.kernel("softmax", [x], [x.spec], {"dim": -1, "dtype": None})

    def cat(self, *parts: Value, dim: int) -> Value:
        shape = list(parts[0].shape)
        shape[dim] = sum(part.size(dim) for part in parts)
        return self.kernel("cat", parts, [_spec(shape, parts[0].spec.dtype)], {"dim": dim})

    def max_pool(self, x: Value, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False) -> Value:
        out = _image(x, x.size(1), kernel, stride, padding, ceil=ceil)
        attributes: Attributes = {"ceil_mode": ceil, "dilation": [1, 1], "kernel_size": [kernel] * 2}
        attributes |= {"padding": [padding] * 2, "stride": [stride] * 2}
        return self.kernel("max_pool2d", [x], [out], attributes)

    def avg_pool(self, x: Value, kernel: int) -> Value:
        """Windows side by side."""
        out = _image(x, x.size(1), kernel, kernel, 0)
        attributes: Attributes = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
        attributes |= {"kernel_size": [kernel] * 2, "padding": [0, 0], "stride": [kernel] * 2}
        return self.kernel("avg_pool2d", [x], [out], attributes)

    def adaptive_avg_pool(self, x: Value, side: int = 1) -> Value:
        out = _spec((*x.shape[:2], side, side), x.spec.dtype)
        return self.kernel("adaptive_avg_pool2d", [x], [out], {"output_size": [side, side]})

    def image_mean(self, x: Value) -> Value:
        """[rows, channels, height, width] -> [rows, channels]."""
        return self.kernel(
            "mean", [x], [_spec(x.shape[:2], x.spec.dtype)], {"dim": [2, 3], "dtype": None, "keepdim": False}
        )

    def flatten(self, x: Value) -> Value:
        """[rows, ...] -> [rows, entries]."""
        return self.view(x, Rows(1), x.spec.size(1))


def signature(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    weights: Sequence[TensorSpec],
    kernels: Sequence[Kernel],
) -> str:
    """A hash of the work, whatever the layers are called. Not the one capture/ gives: that one sees views too."""
    lines = [" ".join(map(str, specs)) for specs in (inputs, outputs, weights)]
    lines += [f"{kernel.key} {kernel.weights} {kernel.deps}" for kernel in kernels]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def _spec(shape: Sequence[Dim], dtype: str) -> TensorSpec:
    row_dims = [index for index, dim in enumerate(shape) if isinstance(dim, Rows)]
    return TensorSpec(tuple(shape), dtype, row_dims[0] if row_dims else None)


def _image(x: Value, channels: int, kernel: int, stride: int, padding: int, *, ceil: bool = False) -> TensorSpec:
    """The result of sliding a window over an image."""
    reach = [x.size(dim) + 2 * padding - kernel for dim in (2, 3)]
    assert min(reach) >= 0, f"a window of {kernel} does not fit into {x.spec}"
    sides = [-(-extent // stride) + 1 if ceil else extent // stride + 1 for extent in reach]
    return _spec((x.shape[0], channels, *sides), x.spec.dtype)


def _optional(operands: list[Value], **optional: Value | None) -> tuple[list[Value], Attributes]:
    """What is absent is an attribute: `bias=None`."""
    operands = operands + [value for value in optional.values() if value is not None]
    return operands, {name: None for name, value in optional.items() if value is None}


def _broadcast(shapes: Sequence[Sequence[Dim]]) -> list[Dim]:
    rank = max(map(len, shapes))
    columns = zip(*((*(1,) * (rank - len(shape)), *shape) for shape in shapes), strict=True)
    return [_widest(dims) for dims in columns]


def _widest(dims: Sequence[Dim]) -> Dim:
    wide = {dim for dim in dims if dim != 1}
    assert len(wide) <= 1, f"{dims} do not broadcast"
    return wide.pop() if wide else 1


def _print_attributes(attributes: Attributes) -> str:
    """As capture/ prints them: sorted, floats exact."""
    printed = ",".join(f"{key}={_print(attributes[key])}" for key in sorted(attributes))
    return f"{{{printed}}}" if printed else ""


def _print(literal: Literal) -> str:
    if isinstance(literal, (list, tuple)):
        return f"[{','.join(map(str, literal))}]"
    return literal.hex() if isinstance(literal, float) else repr(literal)
