"""Matrix products: MatMul, Gemm, Einsum, Attention and its rotary places. Used by profiler/onnx/ only."""

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
    if lengths is not None:
        raise Unsupported("lengths of padded keys are not implemented")
    is_flat = query.ndim == 3
    if is_flat:
        query = _heads_apart(query, node.attributes["q_num_heads"])
        key = _heads_apart(key, node.attributes["kv_num_heads"])
        value = _heads_apart(value, node.attributes["kv_num_heads"])
    causal, num_past = bool(node.attribute("is_causal", 0)), 0
    if past_key is not None and past_value is not None:
        num_past = past_key.shape[2]
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    grouped = query.shape[1] != key.shape[1]
    scored = any(node.outputs[3:]) or node.attribute("softcap", 0.0)
    if causal and (mask is not None or num_past or scored):
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(num_past)
        if mask is None or mask.dtype == torch.bool:
            mask = allowed if mask is None else mask & allowed
        else:
            mask = torch.where(allowed, mask, -torch.inf)
        causal = False
    if scored:
        each = query.shape[1] // key.shape[1]
        keys, values = (key, value) if each == 1 else (key.repeat_interleave(each, 1), value.repeat_interleave(each, 1))
        mixed, scores = _scored(node, query, keys, values, mask)
        return (mixed.transpose(1, 2).flatten(2) if is_flat else mixed, key, value, scores)
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=node.attribute("scale"), enable_gqa=grouped
    )
    mixed = mixed.transpose(1, 2).flatten(2) if is_flat else mixed
    return (mixed, key, value)


def _scored(node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Step by step, as torch's attention shows no scores and does not cap them."""
    softcap, which = node.attribute("softcap", 0.0), node.attribute("qk_matmul_output_mode", 0)
    scale = node.attribute("scale") or query.shape[-1] ** -0.5
    raw = torch.matmul(query, key.transpose(-2, -1)) * scale
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    masked = capped
    if mask is not None:
        masked = capped.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else capped + mask
    weights = torch.softmax(masked, -1)
    return torch.matmul(weights, value), (raw, capped, masked, weights)[which]


def _heads_apart(states: Tensor, heads: int) -> Tensor:
    apart: Tensor = states.unflatten(-1, (heads, states.shape[-1] // heads)).transpose(1, 2)
    return apart


@op("RotaryEmbedding", 23)
def _rotary_embedding(node: Node, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensor:
    """Every pair of entries of a head is turned by the angle of its token."""
    is_flat = x.ndim == 3
    heads = _heads_apart(x, node.attributes["num_heads"]) if is_flat else x
    if positions is not None:
        cosines, sines = functional.embedding(positions, cosines), functional.embedding(positions, sines)
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    turned = node.attribute("rotary_embedding_dim", 0) or heads.shape[-1]
    inside, rest = heads[..., :turned], heads[..., turned:]
    interleaved = bool(node.attribute("interleaved", 0))
    first, second = (inside[..., 0::2], inside[..., 1::2]) if interleaved else inside.chunk(2, -1)
    parts = (first * cosines - second * sines, first * sines + second * cosines)
    result = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    result = torch.cat((result, rest), -1) if rest.shape[-1] else result
    return result.transpose(1, 2).flatten(2) if is_flat else result
