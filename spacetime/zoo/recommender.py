"""A click predictor: embeddings of categories, pairwise dot products, an MLP. Part of the zoo; imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spacetime.zoo.mlp import relu_stack

DENSE_FEATURES = 13
TABLE_SIZES = (1000, 500, 100, 20)  # users, items, brands, countries


class Recommender(nn.Module):
    """DLRM (2019) in small: dense features [rows, 13] and four ids [rows] give one logit per row."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.dense = nn.Sequential(*relu_stack([DENSE_FEATURES, 64, width]))
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in TABLE_SIZES)
        num_vectors = 1 + len(TABLE_SIZES)
        num_pairs = num_vectors * (num_vectors - 1) // 2
        self.top = nn.Sequential(*relu_stack([width + num_pairs, 128, 64]), nn.Linear(64, 1))
        # Every pair of different vectors once: the triangle below the diagonal of their products.
        first, second = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.pairs: Tensor
        self.register_buffer("pairs", first * num_vectors + second, persistent=False)

    def forward(self, dense: Tensor, user: Tensor, item: Tensor, brand: Tensor, country: Tensor) -> Tensor:
        features = self.dense(dense)
        embedded = [table(ids) for table, ids in zip(self.tables, (user, item, brand, country), strict=True)]
        vectors = torch.stack([features, *embedded], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        interactions = products.index_select(1, self.pairs)
        logit: Tensor = self.top(torch.cat([features, interactions], dim=1))
        return logit
