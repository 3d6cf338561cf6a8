"""Matrix products: MatMul, Gemm, Einsum, Attention. Used by profiler/onnx/ only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Unsupported
from spacetime.profiler.onnx.registry import INTERNAL, op


@op("MatMul", 13)
def _matmul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


@op("Linear", domain=INTERNAL)
def _linear(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product with a constant, stored as nn.Linear stores it."""
    return functional.linear(x, weight, bias)


@op("ScaledDotProduct", domain=INTERNAL)
def _scaled_dot_product(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with the keys as the product had them: [..., size, tokens]."""
    keys = key.transpose(-2, -1)
    mixed: Tensor = functional.scaled_dot_product_attention(
        query, keys, value, attn_mask=mask, scale=node.attributes["scale"]
    )
    return mixed


@op("Gemm", 13, scalars=(2,))
def _gemm(node: Node, x: Tensor, y: Tensor, offset: Any = None) -> Any:
    x = x.t() if node.attribute("transA", 0) else x
    y = y.t() if node.attribute("transB", 0) else y
    product = _times(x @ y, node.attribute("alpha", 1.0))
    return product if offset is None else product + _times(offset, node.attribute("beta", 1.0))


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1.0 else x * factor


@op("Einsum", 12, 28)
def _einsum(node: Node, *inputs: Tensor) -> Tensor:
    return torch.einsum(node.attributes["equation"], *inputs)


@op("Attention", 23, 24, 25)
def _attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """[rows, heads, tokens, size], or [rows, tokens, heads * size] with the numbers of heads as attributes."""
    node.refuse_all_but(softcap=0.0)
    if lengths is not None or (len(node.outputs) > 3 and node.outputs[3]):
        raise Unsupported("lengths of padded keys, or the scores as an output, are not implemented")
    is_flat = query.ndim == 3
    if is_flat:
        query = _heads_apart(query, node.attributes["q_num_heads"])
        key = _heads_apart(key, node.attributes["kv_num_heads"])
        value = _heads_apart(value, node.attributes["kv_num_heads"])
    causal = bool(node.attribute("is_causal", 0))
    if past_key is not None and past_value is not None:
        if causal:
            raise Unsupported("is_causal beside past keys is not implemented")
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    grouped = query.shape[1] != key.shape[1]
    if causal and mask is not None:
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        mask = mask & allowed if mask.dtype == torch.bool else torch.where(allowed, mask, -torch.inf)
        causal = False
    mixed: Tensor = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=node.attribute("scale"), enable_gqa=grouped
    )
    mixed = mixed.transpose(1, 2).flatten(2) if is_flat else mixed
    return (mixed, key, value)


def _heads_apart(states: Tensor, heads: int) -> Tensor:
    apart: Tensor = states.unflatten(-1, (heads, states.shape[-1] // heads)).transpose(1, 2)
    return apart
