"""Transformer encoders: ViT (pre-norm, joint qkv) and BERT (post-norm, separate q, k, v, attention mask).

Part of the zoo; imports torch only. `tied` builds its language model from `PreNormBlock`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BERT_VOCABULARY = 2000  # a small one: the encoder is the subject


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[rows, tokens, width] -> [rows, heads, tokens, width / heads]."""
    rows, tokens, width = states.shape
    return states.reshape(rows, tokens, heads, width // heads).transpose(1, 2)


def join_heads(states: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    return states.transpose(1, 2).flatten(2)


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class JointAttention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.query_key_value(states).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        attended: Tensor = self.output(join_heads(mixed))
        return attended


class PreNormBlock(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = JointAttention(width, heads, causal)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attention(self.attention_norm(states))
        output: Tensor = states + self.feed_forward(self.feed_forward_norm(states))
        return output


class VisionTransformer(nn.Module):
    """ViT (2020): patches as tokens, a class token in front, the class token classified."""

    def __init__(
        self, *, side: int = 32, patch: int = 4, width: int = 192, depth: int = 6, heads: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), tokens], dim=1)
        states = self.norm(self.blocks(tokens + self.positions))
        logits: Tensor = self.head(states[:, 0])
        return logits


class MaskedAttention(nn.Module):
    """Self-attention with a linear layer each for queries, keys and values, over the keys the mask allows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = (split_heads(layer(states), self.heads) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        attended: Tensor = self.output(join_heads(mixed))
        return attended


class PostNormBlock(nn.Module):
    """Attention and feed-forward, each with a residual and a layer norm after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = MaskedAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, allowed: Tensor) -> Tensor:
        states = self.attention_norm(states + self.attention(states, allowed))
        output: Tensor = self.feed_forward_norm(states + self.feed_forward(states))
        return output


class BertEncoder(nn.Module):
    """BERT (2018): token ids, segment ids and an attention mask (1: a token, 0: padding), all [rows, tokens].

    Returns the state of every token and the pooled state of the first.
    """

    def __init__(self, width: int = 256, depth: int = 4, heads: int = 4, max_tokens: int = 512) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BERT_VOCABULARY, width)
        self.positions = nn.Embedding(max_tokens, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PostNormBlock(width, heads) for _ in range(depth))
        self.pooler = nn.Linear(width, width)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        states = self.norm(self.tokens(token_ids) + self.positions(positions) + self.segments(segment_ids))
        allowed = mask.bool()[:, None, None, :]  # broadcast over heads and queries
        for block in self.blocks:
            states = block(states, allowed)
        return states, torch.tanh(self.pooler(states[:, 0]))
