"""Families of operations and what each must fulfil to keep rows apart. Used by capture/ only.

A family is a check over one call: which arguments carry rows, in which dimension, and what the operation
does along it. An operation that is in no family is not proven to keep rows apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from spacetime.capture.export import Unfusible
from spacetime.ir import TensorSpec


def op_name(target: Any) -> str:
    """aten.conv2d.default -> conv2d; operator.mul -> mul."""
    schema = getattr(target, "_schema", None)
    return str(schema.name).split("::")[-1] if schema is not None else str(getattr(target, "__name__", target))


def bind_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): arg for index, arg in enumerate(node.args)}
    bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    bound.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


@dataclass(frozen=True)
class Call:
    """One operation with its arguments by name, and the row positions of what it reads and writes."""

    node: fx.Node
    name: str
    args: dict[str, Any]
    carriers: dict[str, TensorSpec]  # the arguments that carry rows, by name
    output: TensorSpec | None  # the first output that carries rows

    def fail(self, why: str) -> Unfusible:
        return Unfusible(f"{self.name} ({self.node.name}): {why}")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(self.carriers.values())

    @property
    def rank(self) -> int:
        return len(self.inputs[0].shape)

    @property
    def row_dim(self) -> int:
        row_dim = self.inputs[0].row_dim
        assert row_dim is not None
        return row_dim


def is_unwritten(node: fx.Node) -> bool:
    """Memory that nobody has written, so its content is anything."""
    return op_name(node.target) in ("empty", "new_empty", "empty_like", "empty_strided", "empty_permuted")


def is_random(node: fx.Node) -> bool:
    """Draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    args = bind_arguments(node)
    switches = [args[name] for name in ("train", "training", "dropout_p") if name in args]
    return not switches or any(switches)


def _from_right(spec: TensorSpec) -> int:
    assert spec.row_dim is not None
    return len(spec.shape) - spec.row_dim


def _pointwise(call: Call) -> None:
    assert call.output is not None
    if any(_from_right(spec) != _from_right(call.output) for spec in call.inputs):
        raise call.fail("broadcasts rows against each other")


def _along(call: Call) -> None:
    """Works along the dimensions it names; those must not be the rows."""
    if "other" in call.args:  # max(x, y), min(x, y)
        return _pointwise(call)
    dims: list[int] = []
    for name in ("dim", "dims", "dim0", "dim1", "dimension"):
        value = call.args.get(name)
        dims += [value] if isinstance(value, int) else list(value or ())
    if call.row_dim in [dim % call.rank for dim in dims] or (not dims and call.name in ("flip", "roll")):
        raise call.fail("works along the rows")


def _difference(call: Call) -> None:
    """Of neighbours along a dimension; what is put before or behind has rows, too."""
    _along(call)
    _pointwise_dims(call)


def _slice(call: Call) -> None:
    on_rows = call.args.get("dim", 0) % call.rank == call.row_dim
    start, end, step = call.args.get("start"), call.args.get("end"), call.args.get("step", 1)
    keeps_all = start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**31)) and step == 1
    if on_rows and not keeps_all:
        raise call.fail("picks some of the rows")


def _cat(call: Call) -> None:
    assert call.output is not None
    if call.args.get("dim", 0) % len(call.output.shape) == call.output.row_dim:
        raise call.fail("works along the rows")
    _pointwise_dims(call)


def _stack(call: Call) -> None:
    if len({spec.row_dim for spec in call.inputs}) != 1:
        raise call.fail("stacks different dimensions that carry rows")


def _pointwise_dims(call: Call) -> None:
    assert call.output is not None
    if any(spec.row_dim != call.output.row_dim for spec in call.inputs):
        raise call.fail("joins different dimensions that carry rows")


def _reshape(call: Call) -> None:
    """Rows stay apart if as many entries lie before them as did before."""
    assert call.output is not None
    if _entries_before(call.inputs[0]) != _entries_before(call.output):
        raise call.fail("moves entries across rows")


def _entries_before(spec: TensorSpec) -> int:
    total = 1
    for dim in spec.shape[: spec.row_dim]:
        assert isinstance(dim, int)
        total *= dim
    return total


def _squeeze(call: Call) -> None:
    """A dimension of size 1 goes; the rows would go too in a batch of one."""
    dims = call.args.get("dim")
    if dims is None or call.row_dim in [
        dim % call.rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])
    ]:
        raise call.fail("drops the row dimension of a single row")
    _reshape(call)


def _repeat(call: Call) -> None:
    """Entries of a row may be repeated, constants also over the rows; rows may not."""
    repeats = call.args["repeats"]
    if call.carriers and repeats[len(repeats) - call.rank + call.row_dim] != 1:
        raise call.fail("repeats rows")


def _fill(call: Call) -> None:
    if isinstance(call.args.get("fill_value"), fx.Node):
        raise call.fail("computes with the number of rows")


def _relayout(call: Call) -> None:
    """Permutations and fills: the row dimension is found again by its symbol."""


def _matmul(call: Call) -> None:
    """The contracted dimension must not carry rows; rows that meet must be batch dimensions of both sides."""
    assert call.output is not None
    out = _from_right(call.output)
    if 1 in [call.args[name].meta["val"].ndim for name in ("self", "other") if name in call.args]:
        out += 1  # a product with a vector has lost the last dimension
    if any(_from_right(spec) != out for spec in call.inputs):
        raise call.fail("contracts over rows")
    if len(call.inputs) > 1 and out < 3:
        raise call.fail("multiplies rows with rows")


def _addmm(call: Call) -> None:
    assert call.output is not None
    if call.output.row_dim != 0 or len(call.inputs) != 1 or call.row_dim != 0:
        raise call.fail("contracts over rows")


def _baddbmm(call: Call) -> None:
    """A product of batches, plus something that broadcasts: rows are the batch of all."""
    assert call.output is not None
    if any(_from_right(spec) != 3 for spec in (*call.inputs, call.output)):
        raise call.fail("contracts over rows")


def _linear(call: Call) -> None:
    if call.carriers.keys() != {"input"} or call.row_dim == call.rank - 1:
        raise call.fail("contracts over rows, or has weights that depend on the inputs")


def _rows_first(call: Call) -> None:
    """Convolutions, pools and norms over channels: rows are the batch dimension, parameters are constant."""
    if len(call.carriers) != 1 or not call.carriers.keys() <= {"input", "self"} or call.row_dim != 0:
        raise call.fail("rows are not the leading dimension, or parameters depend on the inputs")
    if call.args.get("training"):
        raise call.fail("normalises over the batch")


def _spatial(call: Call) -> None:
    """Pooling, resizing: rows must lie outside the last dimensions that it works on, as many as its name says."""
    [touched] = [int(digit) for digit in call.name if digit.isdigit()]
    if len(call.inputs) != 1 or call.row_dim >= call.rank - touched:
        raise call.fail("works along the rows")


def _pad(call: Call) -> None:
    """In pairs, from the last dimension on; the rows may be named, if nothing is added to them."""
    pad = call.args.get("pad") or call.args["padding"]
    place = 2 * (call.rank - 1 - call.row_dim)
    if len(call.inputs) != 1 or any([not isinstance(number, int) or number != 0 for number in pad[place : place + 2]]):
        raise call.fail("works along the rows")


def _layer_norm(call: Call) -> None:
    if len(call.inputs) != 1 or call.row_dim >= call.rank - len(call.args["normalized_shape"]):
        raise call.fail("normalises over rows")


def _matrices(call: Call) -> None:
    if call.row_dim >= call.rank - 2:
        raise call.fail("works along the rows")


def _embedding(call: Call) -> None:
    if not call.carriers.keys() <= {"indices", "self"} or len(call.carriers) != 1:
        raise call.fail("looks rows up in a table that depends on the inputs")


def _attention(call: Call) -> None:
    assert call.output is not None
    positions = {_from_right(spec) for spec in call.inputs}
    if positions != {_from_right(call.output)} or min(positions) < 3:
        raise call.fail("attends over rows")


def _sampled(call: Call) -> None:
    """Every row by a grid of its own."""
    if call.carriers.keys() != {"input", "grid"} or any([spec.row_dim != 0 for spec in call.inputs]):
        raise call.fail("pairs rows with a constant")


def _bilinear(call: Call) -> None:
    """Two vectors of every row and constant weights."""
    if call.carriers.keys() != {"input1", "input2"} or call.row_dim == call.rank - 1:
        raise call.fail("contracts over rows, or has weights that depend on the inputs")
    _pointwise_dims(call)


def _index(call: Call) -> None:
    """x[:, constants] leaves the rows alone; table[indices] is a lookup for every row."""
    if "self" not in call.carriers:
        if len({_from_right(spec) for spec in call.inputs}) != 1:
            raise call.fail("broadcasts rows against each other")
        return
    indexed = [index for index, item in enumerate(call.args["indices"]) if item is not None]
    if call.carriers.keys() != {"self"} or call.row_dim in indexed:
        raise call.fail("picks rows by index")


def _write_part(call: Call) -> None:
    """y[:, part] = x, which has to have its rows where y has them."""
    target, source = call.carriers.get("self"), call.carriers.get("src")
    if target is None or source is None or target.row_dim is None:
        raise call.fail("writes the same to all rows, or rows to what has none")
    dim = call.args.get("dim", 0) % len(target.shape)
    lost = call.name == "select_scatter" and dim < target.row_dim
    if dim == target.row_dim or source.row_dim != target.row_dim - lost:
        raise call.fail("writes to some of the rows")


def _gather(call: Call) -> None:
    """Entry by entry: a tensor without rows would be that of the first rows, whoever they are."""
    beside = [name for name in ("self", "index", "indices", "src") if isinstance(call.args.get(name), fx.Node)]
    if not call.carriers.keys() >= set(beside):
        raise call.fail("pairs rows with a constant")
    _select(call)


def _select(call: Call) -> None:
    """The same entries of every row."""
    if call.args["dim"] % call.rank in {spec.row_dim for spec in call.inputs}:
        raise call.fail("picks rows by index")
    if len({spec.shape[spec.row_dim or 0] for spec in call.inputs}) != 1:
        raise call.fail("pairs rows with entries of other rows")
    _pointwise_dims(call)


Check = Callable[[Call], None]


def _families(*groups: tuple[Check, str]) -> dict[str, Check]:
    return {name: check for check, names in groups for name in names.split()}


FAMILIES: dict[str, Check] = _families(
    (
        _pointwise,
        """add sub rsub mul div true_divide pow neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square sin
        cos tan asin acos atan atan2 sinh cosh tanh sigmoid logit erf erfc relu relu6 leaky_relu elu selu celu
        gelu silu mish hardtanh hardswish hardsigmoid softplus softsign prelu rrelu threshold log_sigmoid
        log_sigmoid_forward clamp clamp_min clamp_max minimum maximum fmod remainder floor ceil round trunc sign
        reciprocal lerp addcmul addcdiv where masked_fill eq ne lt le gt ge logical_and logical_or logical_not
        logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ isnan isinf isfinite
        nan_to_num clone contiguous detach alias _to_copy to type_as lift_fresh_copy lift_fresh dropout
        feature_dropout native_dropout zeros_like ones_like full_like floor_divide sgn positive copy
        zero fill multiply divide subtract negative absolute clip greater greater_equal less less_equal not_equal
        arcsin arccos arctan arctan2 arcsinh arccosh arctanh asinh acosh atanh fix frac hypot logaddexp logaddexp2
        xlogy sinc deg2rad rad2deg erfinv lgamma digamma heaviside copysign float_power ldexp isposinf isneginf
        isclose signbit nextafter""",
    ),
    (
        _along,
        """softmax _softmax log_softmax _log_softmax softmin cumsum cumprod sort argsort topk flip roll select split
        split_with_sizes chunk unbind sum mean amax amin max min var std prod any all logsumexp argmax argmin glu
        norm linalg_vector_norm unsafe_split unsafe_chunk count_nonzero median kthvalue var_mean std_mean aminmax
        unfold cummax cummin logcumsumexp nansum nanmean""",
    ),
    (_difference, "diff"),
    (_matrices, "tril triu"),
    (_slice, "slice"),
    (_cat, "cat concat"),
    (_stack, "stack"),
    (_reshape, "view reshape _unsafe_view flatten unflatten unsqueeze"),
    (_squeeze, "squeeze"),
    (_repeat, "repeat"),
    (_fill, "new_full full"),
    (_relayout, "permute transpose t movedim swapaxes numpy_T expand new_zeros new_ones zeros ones"),
    (_matmul, "matmul bmm mm"),
    (_addmm, "addmm"),
    (_baddbmm, "baddbmm"),
    (_write_part, "slice_scatter select_scatter"),
    (_linear, "linear"),
    (
        _rows_first,
        """conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d batch_norm
        _native_batch_norm_legit _native_batch_norm_legit_no_training group_norm native_group_norm instance_norm
        pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im""",
    ),
    (
        _spatial,
        """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d
        upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
        upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
    ),
    (_pad, "constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
    (_layer_norm, "layer_norm native_layer_norm rms_norm"),
    (_embedding, "embedding one_hot"),
    (_attention, "scaled_dot_product_attention"),
    (_sampled, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    (_bilinear, "bilinear"),
    (_index, "index"),
    (_gather, "gather take_along_dim scatter scatter_add"),
    (_select, "index_select"),
)

FILLS = frozenset("expand repeat new_zeros new_ones new_full zeros ones full".split())
SIZED = FILLS | frozenset("view reshape _unsafe_view arange flatten".split())


def is_pointwise(name: str) -> bool:
    """Every entry of the result depends on the same entry of the (broadcast) operands."""
    return FAMILIES.get(name) is _pointwise
