"""Outputs of different requests never share memory, though they come out of one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import spacetime as st
from spacetime.zoo import build, example
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, X, plain


class Views(nn.Module):
    """Outputs that are views: of the input, of each other, of a weight's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = x * self.scale
        return x, y, y[:, :2], self.scale.expand(x.shape[0], 4)


def memory(result: object) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(result)}


@pytest.mark.parametrize("name", ["mlp", "gru_cell", "recommender", "tied_lm", "views"])
def test_requests_of_one_lane_share_no_memory(name: str) -> None:
    modules: list[nn.Module] = [Views().eval() if name == "views" else build(name, seed=seed) for seed in range(3)]
    arguments = [(X + seed,) if name == "views" else example(name, rows=2, seed=seed) for seed in range(6)]
    gate = Gate()
    with st.Runtime() as rt:
        hold = rt.add(gate, EXAMPLE, "gate", exact=True)
        tenants = [rt.add(module, arguments[0], f"t{index}") for index, module in enumerate(modules)]
        gate.close()
        holding = hold.submit(X)
        assert gate.entered.wait(PATIENCE_S)
        futures = [tenants[index % 3].submit(*args) for index, args in enumerate(arguments)]
        gate.open()
        holding.result(PATIENCE_S)
        results = [future.result(PATIENCE_S) for future in futures]
        inputs = [memory(args) for args in arguments]
        weights = set().union(*(memory(list(module.parameters())) for module in modules))
        seen: set[int] = set()
        for index, result in enumerate(results):
            mine = memory(result)
            assert not mine & seen, "two requests look at the same memory"
            assert not any(mine & other for place, other in enumerate(inputs) if place != index)
            seen |= mine - (weights if name == "views" else set())
        for result in results:
            with torch.no_grad():
                pytree.tree_map(lambda leaf: leaf.zero_() if leaf.is_contiguous() else leaf, result)
        for tenant, module in zip(tenants, modules, strict=True):
            assert any(leaf.any() for leaf in pytree.tree_leaves(plain(module, *arguments[1])))
            tenant(*arguments[1])
