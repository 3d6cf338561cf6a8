"""Transformers: BERT, DistilBERT, ALBERT, GPT-2, ViT. Used by sim/architectures only; no torch.

Heads are split and joined by views. Attention is one kernel, except in ALBERT, which is written as models were
before there was such a kernel: products, scaling, mask and softmax apart. Its GELU and that of GPT-2 are the
approximation that their code computes an operation at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from spacetime.ir import Program, Rows
from spacetime.sim.architectures.builder import Builder, Value
from spacetime.sim.architectures.classic import image

BERT_EPS = 1e-12
EPS = 1e-5

Activation = Callable[[Builder, Value], Value]
Mixing = Callable[[Builder, Value, Value, Value, Value], Value]  # query, key, value, mask


def gelu(b: Builder, x: Value) -> Value:
    return b.pointwise("gelu", x, approximate="none")


def gelu_by_parts(b: Builder, x: Value) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), an operation at a time: what "gelu_new" runs."""
    half = b.pointwise("mul", x, other=0.5)
    cubic = b.pointwise("mul", b.pointwise("pow", x, exponent=3.0), other=0.044715)
    inner = b.pointwise("mul", b.add(x, cubic), other=math.sqrt(2 / math.pi))
    return b.pointwise("mul", half, b.pointwise("add", b.pointwise("tanh", inner), alpha=1, other=1.0))


def _split_heads(b: Builder, states: Value, heads: int) -> Value:
    """[rows, tokens, width] -> [rows, heads, tokens, width / heads]."""
    return b.view(states, Rows(1), heads, states.size(1), states.size(2) // heads)


def _join_heads(b: Builder, mixed: Value) -> Value:
    """The inverse of `_split_heads`."""
    return b.view(mixed, Rows(1), mixed.size(2), mixed.size(1) * mixed.size(3))


def _positions(b: Builder, tokens: int, max_tokens: int, width: int) -> Value:
    """The first entries of a table: they depend on no input, so they are looked up once, when a tenant is added."""
    return b.view(b.parameter("positions.weight", max_tokens, width), tokens, width)


# -- BERT and its relatives: norms after the sums, separate queries, keys and values, a mask ----------


def _mixed(b: Builder, query: Value, key: Value, value: Value, mask: Value) -> Value:
    return b.attention(query, key, value, mask)


def _mixed_by_parts(b: Builder, query: Value, key: Value, value: Value, mask: Value) -> Value:
    scores = b.matmul(query, b.view(key, Rows(1), key.size(1), key.size(3), key.size(2)))
    scores = b.pointwise("div", scores, other=math.sqrt(query.size(3)))
    scores = b.add(scores, mask)
    return b.matmul(b.softmax(scores), value)


def _for_scores(b: Builder, mask: Value) -> Value:
    """A mask of keys in the form that broadcasts over heads and queries."""
    return b.view(mask, Rows(1), 1, 1, mask.size(1))


def _penalty(b: Builder, mask: Value) -> Value:
    """What is added to the scores of padding."""
    padding = b.pointwise("rsub", b.convert(_for_scores(b, mask), "float32"), alpha=1, other=1.0)
    return b.pointwise("mul", padding, other=-10000.0)


def _post_norm_block(
    b: Builder, states: Value, mask: Value, heads: int, eps: float, *, mix: Mixing, activation: Activation
) -> Value:
    query, key, value = (
        _split_heads(b, b.linear(name, states, states.size(2)), heads) for name in ("query", "key", "value")
    )
    attended = b.linear("output", _join_heads(b, mix(b, query, key, value, mask)), states.size(2))
    states = b.layer_norm("attention_norm", b.add(states, attended), eps=eps)
    wide = activation(b, b.linear("widen", states, 4 * states.size(2)))
    return b.layer_norm("norm", b.add(states, b.linear("narrow", wide, states.size(2))), eps=eps)


def _token_ids(b: Builder, tokens: int) -> Value:
    return b.input(Rows(1), tokens, dtype="int64")


def _pooled(b: Builder, states: Value) -> Value:
    """The state of the first token."""
    first = b.view(states, Rows(1), states.size(2))
    return b.pointwise("tanh", b.linear("pooler", first, states.size(2)))


def bert(
    *,
    tokens: int = 128,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    vocabulary: int = 30522,
    max_tokens: int = 512,
    eps: float = BERT_EPS,
) -> Program:
    """BERT (2018): the state of every token and the pooled state of the first. Base by default."""
    b = Builder()
    token_ids, segment_ids, mask = (_token_ids(b, tokens) for _ in range(3))
    states = b.embedding("tokens", token_ids, vocabulary, width)
    states = b.add(states, _positions(b, tokens, max_tokens, width))
    states = b.add(states, b.embedding("segments", segment_ids, 2, width))
    states = b.layer_norm("norm", states, eps=eps)
    allowed = _for_scores(b, b.convert(mask, "bool"))
    for block in range(depth):
        with b.scope("blocks", block):
            states = _post_norm_block(b, states, allowed, heads, eps, mix=_mixed, activation=gelu)
    return b.program(states, _pooled(b, states))


def distilbert(*, tokens: int = 128) -> Program:
    """DistilBERT (2019): half of BERT's blocks, no segments, no pooled state."""
    b = Builder()
    token_ids, mask = (_token_ids(b, tokens) for _ in range(2))
    states = b.add(b.embedding("tokens", token_ids, 30522, 768), _positions(b, tokens, 512, 768))
    states = b.layer_norm("norm", states, eps=BERT_EPS)
    allowed = _for_scores(b, b.convert(mask, "bool"))
    for block in range(6):
        with b.scope("blocks", block):
            states = _post_norm_block(b, states, allowed, 12, BERT_EPS, mix=_mixed, activation=gelu)
    return b.program(states)


def albert(*, tokens: int = 128) -> Program:
    """ALBERT base (2019): one block used twelve times, and narrow embeddings."""
    b = Builder()
    token_ids, segment_ids, mask = (_token_ids(b, tokens) for _ in range(3))
    states = b.add(b.embedding("tokens", token_ids, 30000, 128), b.embedding("segments", segment_ids, 2, 128))
    states = b.layer_norm("norm", b.add(states, _positions(b, tokens, 512, 128)), eps=BERT_EPS)
    states = b.linear("widen", states, 768)
    penalty = _penalty(b, mask)
    for _ in range(12):
        with b.scope("block"):
            states = _post_norm_block(b, states, penalty, 12, BERT_EPS, mix=_mixed_by_parts, activation=gelu_by_parts)
    return b.program(states, _pooled(b, states))


# -- GPT-2 and ViT: norms before the products, joint queries, keys and values -------------------------


def _pre_norm_block(
    b: Builder, states: Value, heads: int, eps: float, *, causal: bool, activation: Activation
) -> Value:
    width = states.size(2)
    joint = b.linear("query_key_value", b.layer_norm("attention_norm", states, eps=eps), 3 * width)
    query, key, value = (_split_heads(b, b.view(joint, *states.shape), heads) for _ in range(3))
    mixed = b.attention(query, key, value, None, causal=causal)
    states = b.add(states, b.linear("output", _join_heads(b, mixed), width))
    wide = activation(b, b.linear("widen", b.layer_norm("norm", states, eps=eps), 4 * width))
    return b.add(states, b.linear("narrow", wide, width))


def gpt2(
    *,
    tokens: int = 128,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    vocabulary: int = 50257,
    max_tokens: int = 1024,
    activation: Activation = gelu_by_parts,
) -> Program:
    """GPT-2 (2019), the small one, reading a prompt: logits and state of every token. Embeddings are tied."""
    b = Builder()
    states = b.embedding("tokens", _token_ids(b, tokens), vocabulary, width)
    states = b.add(states, _positions(b, tokens, max_tokens, width))
    for block in range(depth):
        with b.scope("blocks", block):
            states = _pre_norm_block(b, states, heads, EPS, causal=True, activation=activation)
    states = b.layer_norm("norm", states, eps=EPS)
    logits = b.matrix_product(states, b.parameter("tokens.weight", vocabulary, width))
    return b.program(logits, states)


def vit(
    *,
    side: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    classes: int = 1000,
    eps: float = 1e-6,
) -> Program:
    """ViT (2020): patches as tokens, a class token in front, the class token classified. ViT-B/16 by default."""
    b = Builder()
    patches = b.conv("patches", image(b, side), width, patch, stride=patch)
    num_patches = patches.size(2) * patches.size(3)
    class_token = b.view(b.parameter("class_token", 1, 1, width), Rows(1), 1, width)
    states = b.cat(class_token, b.view(patches, Rows(1), num_patches, width), dim=1)
    states = b.add(states, b.parameter("positions", 1, 1 + num_patches, width))
    for block in range(depth):
        with b.scope("blocks", block):
            states = _pre_norm_block(b, states, heads, eps, causal=False, activation=gelu)
    states = b.layer_norm("norm", states, eps=eps)
    return b.program(b.linear("head", b.view(states, Rows(1), width), classes))
