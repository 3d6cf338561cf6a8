"""Slot forms, one function per operation: how a call with weights becomes a slot operation. Used by capture/ only.

Each returns False when the call does not have the form; it then runs once per tenant inside the lane.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from spacetime.capture.families import bind_arguments, op_name
from spacetime.capture.fuse import FusedProgram, Fuser, Lowering, Operand, OperandRef, Ref, TenantValues
from spacetime.capture.on_gpu import on_gpu
from spacetime.capture.program import Captured


def fuse(captured: Captured) -> FusedProgram:
    """The fused program of an architecture, in the form for the device that its weights are on."""
    program = Fuser(captured, LOWERINGS).run()
    is_on_gpu = any(weight.tensor.is_cuda for weight in captured.weights)
    return on_gpu(program, captured.proof) if is_on_gpu else program


Arguments = dict[str, Any]


def _carries_rows(fuser: Fuser, value: Any) -> bool:
    return isinstance(value, fx.Node) and value not in fuser.proof.constants


def _linear(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    return _matrix_product(fuser, node, args["input"], args["weight"], args.get("bias"), transposed=False)


def _matmul(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    return _matrix_product(fuser, node, args["self"], args.get("other", args.get("mat2")), None, transposed=True)


def _addmm(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    bias_fits = isinstance(args["self"], fx.Node) and len(fuser.proof.spec(args["self"]).shape) == 1
    if not bias_fits or args.get("beta", 1) != 1 or args.get("alpha", 1) != 1:
        return False
    return _matrix_product(fuser, node, args["mat1"], args["mat2"], args["self"], transposed=True)


def _matrix_product(fuser: Fuser, node: fx.Node, x: Any, w: Any, bias: Any, *, transposed: bool) -> bool:
    if not _carries_rows(fuser, x) or not fuser.is_operand(w) or len(fuser.proof.spec(w).shape) != 2:
        return False
    operands = (fuser.operand(w, transposed=transposed), fuser.optional_operand(bias))
    attributes = {"row_dim": fuser.proof.spec(x).row_dim}
    fuser.emit(node, "linear", fuser.ref(x), operands=operands, attributes=attributes)
    return True


def _conv(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    """Convolution, with the BatchNorm and the activation behind it when nobody else reads what is between."""
    if not _carries_rows(fuser, args["input"]) or not fuser.is_operand(args["weight"]):
        return False
    last, scale, shift = node, None, None
    following = _following_batch_norm(node)
    if following is not None and _is_eval_batch_norm(fuser, following[0]):
        norm, normed = following
        scale, shift = _batch_norm_operands(fuser, norm, conv_bias=args.get("bias"))
        fuser.absorb(norm, node)
        fuser.absorb(normed, node)
        last = normed
    activation = _following_activation(last)
    if activation is not None:
        fuser.absorb(activation, node)
    attributes = {
        "name": op_name(node.target),
        "stride": args["stride"],
        "padding": args["padding"],
        "dilation": args["dilation"],
        "groups": args["groups"],
        "activation": None if activation is None else (op_name(activation.target), _bounds(activation)),
    }
    bias = fuser.optional_operand(args.get("bias")) if scale is None else None
    weight = fuser.operand(args["weight"], channels_last=op_name(node.target) == "conv2d")
    operands = (weight, bias, scale, shift)
    fuser.emit(node, "conv", fuser.ref(args["input"]), operands=operands, attributes=attributes)
    return True


def _following_batch_norm(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The only reader, if it is a BatchNorm, and the node that holds its result."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.args[0] is not node:
        return None
    if op_name(user.target) == "batch_norm":
        return user, user
    if op_name(user.target) == "_native_batch_norm_legit_no_training" and len(user.users) == 1:
        (result,) = user.users
        return (user, result) if result.args[1] == 0 else None
    return None


def _is_eval_batch_norm(fuser: Fuser, norm: fx.Node) -> bool:
    args = bind_arguments(norm)
    statistics = [args.get("running_mean"), args.get("running_var")]
    return not args.get("training") and all(fuser.is_operand(value) for value in statistics)


def _following_activation(node: fx.Node) -> fx.Node | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if op_name(user.target) in ("relu", "hardtanh", "relu6") else None


def _bounds(node: fx.Node) -> tuple[float, float]:
    args = bind_arguments(node)
    if op_name(node.target) == "relu":
        return (0.0, float("inf"))
    return (float(args.get("min_val", 0.0)), float(args.get("max_val", 6.0)))


def _batch_norm_operands(fuser: Fuser, norm: fx.Node, conv_bias: Any = None) -> tuple[OperandRef, OperandRef]:
    """BatchNorm in eval mode is x * scale + shift; the bias of a convolution before it joins the shift."""
    args = bind_arguments(norm)

    def scale(values: TenantValues) -> Tensor:
        inverse: Tensor = torch.rsqrt(values[args["running_var"]].double() + args["eps"])
        weight = args.get("weight")
        return inverse if weight is None else inverse * values[weight].double()

    def shift(values: TenantValues) -> Tensor:
        mean = values[args["running_mean"]].double()
        before = mean.neg() if conv_bias is None else values[conv_bias].double() - mean
        after = before * scale(values)
        bias = args.get("bias")
        shifted: Tensor = after if bias is None else after + values[bias].double()
        return shifted.to(values[args["running_mean"]].dtype)

    def rounded_scale(values: TenantValues) -> Tensor:
        return scale(values).to(values[args["running_var"]].dtype)

    return (
        fuser.add_operand((norm, "scale"), Operand(f"{norm.name}.scale", rounded_scale)),
        fuser.add_operand((norm, "shift"), Operand(f"{norm.name}.shift", shift)),
    )


def _batch_norm(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    if not _carries_rows(fuser, args["input"]) or not _is_eval_batch_norm(fuser, node):
        return False
    result = node
    if op_name(node.target) == "_native_batch_norm_legit_no_training":
        readers = list(node.users)
        if len(readers) != 1 or readers[0].args[1] != 0:
            return False
        result = readers[0]
        fuser.absorb(result, node)
    fuser.emit(node, "affine", fuser.ref(args["input"]), operands=_batch_norm_operands(fuser, node))
    return True


def _embedding(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    if not _carries_rows(fuser, args["indices"]) or not fuser.is_operand(args["weight"]):
        return False
    attributes = {"row_dim": fuser.proof.spec(args["indices"]).row_dim}
    table = fuser.operand(args["weight"])
    fuser.emit(node, "embedding", fuser.ref(args["indices"]), operands=(table,), attributes=attributes)
    return True


def _layer_norm(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    if not _carries_rows(fuser, args["input"]):
        return False
    attributes = {
        "shape": list(args["normalized_shape"]),
        "eps": args["eps"],
        "row_dim": fuser.proof.spec(args["input"]).row_dim,
    }
    operands = (fuser.optional_operand(args.get("weight")), fuser.optional_operand(args.get("bias")))
    fuser.emit(node, "layer_norm", fuser.ref(args["input"]), operands=operands, attributes=attributes)
    return True


def _group_norm(fuser: Fuser, node: fx.Node, args: Arguments) -> bool:
    """Normalise all rows at once, then scale and shift each with its own tenant's affine."""
    if not _carries_rows(fuser, args["input"]) or args.get("weight") is None or args.get("bias") is None:
        return False
    operands = (fuser.operand(args["weight"]), fuser.operand(args["bias"]))
    name = f"{node.name}__normed"
    fuser.emit(node, torch.group_norm, fuser.ref(args["input"]), args["num_groups"], None, None, args["eps"], out=name)
    fuser.emit(node, "affine", Ref(name), operands=operands)
    return True


LOWERINGS: dict[str, Lowering] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
}
