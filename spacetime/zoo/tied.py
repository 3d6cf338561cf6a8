"""A language model whose input and output embeddings are one parameter. Part of the zoo; imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spacetime.zoo.transformers import PreNormBlock

VOCABULARY = 1000
MAX_TOKENS = 128


class TiedLanguageModel(nn.Module):
    """GPT-2 in small, for token ids [rows, tokens]. Returns a dict, as language models do."""

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(MAX_TOKENS, width)
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        states = self.norm(self.blocks(self.tokens(token_ids) + self.positions(positions)))
        return {"logits": self.head(states), "states": states}
