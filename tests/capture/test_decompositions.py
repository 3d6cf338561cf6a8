"""Our decomposition of LSTMs: the values of torch's own operation, the program of torch's where torch's is right.

Those of cells are compared with torch's in test_expand.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.capture import export
from spacetime.capture.decompositions import lstm
from tests.capture.tenants import capture

LSTM = torch.ops.aten.lstm.input
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers of two directions": {"num_layers": 2, "bidirectional": True},
    "steps first": {"batch_first": False},
    "no biases": {"bias": False, "bidirectional": True},
    "projected": {"proj_size": 3, "num_layers": 2},
    "projected without biases": {"proj_size": 3, "bias": False},
}


class Sequence(nn.Module):
    """Answers with its final states as well; rows come first."""

    def __init__(self, kind: dict[str, Any]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.lstm = nn.LSTM(5, 4, **{"batch_first": True, **kind})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x if self.lstm.batch_first else x.transpose(0, 1)
        y, (hidden, cell) = self.lstm(x)
        return y if self.lstm.batch_first else y.transpose(0, 1), hidden.transpose(0, 1), cell[-1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_it_computes_what_the_operation_does_for_one_row_too(name: str, rows: int) -> None:
    module = Sequence(KINDS[name]).double().lstm
    ways, generator = 2 if module.bidirectional else 1, torch.Generator().manual_seed(1)
    size = (rows, 6, 5) if module.batch_first else (6, rows, 5)
    states = [
        torch.randn(ways * module.num_layers, rows, width, generator=generator, dtype=torch.float64)
        for width in (module.proj_size or 4, 4)
    ]
    params = [weight for layer in module.all_weights for weight in layer]
    rest = (module.bias, module.num_layers, 0.0, False, module.bidirectional, module.batch_first)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.lstm(x, states, params, *rest)
        found = lstm(x, states, params, *rest)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["two layers of two directions", "projected"])
def test_a_program_is_the_same_as_with_a_decomposition_of_torch_that_is_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = torch.export.default_decompositions()[LSTM]
    if not is_right(theirs):
        pytest.skip("this torch has none")
    inputs = (torch.rand(2, 2, 5),)
    ours = capture(Sequence(KINDS[name]).eval(), inputs).program
    table = {**export._decompositions(), LSTM: theirs}
    monkeypatch.setattr(export, "_decompositions", lambda: table)
    with torch.backends.mkldnn.flags(enabled=False):  # or it makes one operation of oneDNN's of a layer
        assert capture(Sequence(KINDS[name]).eval(), inputs).program == ours


def is_right(decomposition: Any) -> bool:
    """Asked, not looked up by version: of two rows. In float64, which no library has a layer of its own for."""
    steps, rows, size = 1, 2, 3
    states = [torch.zeros(1, rows, size, dtype=torch.float64) for _ in range(2)]
    params = [torch.zeros(4 * size, size, dtype=torch.float64) for _ in range(2)]
    x = torch.zeros(steps, rows, size, dtype=torch.float64)
    found = decomposition(x, states, params, False, 1, 0.0, False, False, False)
    return all(found[1 + index].shape == states[index].shape for index in range(2))


def test_final_states_are_captured_whatever_torch_makes_of_them() -> None:
    program = capture(Sequence({}).eval(), (torch.rand(2, 3, 5),)).program
    assert [str(spec.row_dim) for spec in program.outputs] == ["0", "0", "0"]
