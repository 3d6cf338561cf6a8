"""Our decomposition of LSTMs: the values of torch's own operation, the program of torch's where torch's is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.capture import decompositions, export
from spacetime.capture.decompositions import lstm, repaired
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
    if not decompositions._is_right(theirs):
        pytest.skip("this torch has none")
    inputs = (torch.rand(2, 2, 5),)
    plain = capture(Sequence(KINDS[name]).eval(), inputs).program
    table = {**export._decompositions(), LSTM: lstm}
    monkeypatch.setattr(export, "_decompositions", lambda: table)
    assert capture(Sequence(KINDS[name]).eval(), inputs).program == plain


def with_rows_squeezed(*arguments: Any) -> tuple[Tensor, ...]:
    """As torch 2.11 does it."""
    y, hidden, cell = lstm(*arguments)
    return y, hidden.unsqueeze(1), cell.unsqueeze(1)


def test_only_a_decomposition_that_is_wrong_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {torch.ops.aten.gru.input: object()}
    assert repaired(others) == others
    assert repaired({**others, LSTM: with_rows_squeezed}) == {**others, LSTM: lstm}

    def right(*arguments: Any) -> tuple[Tensor, ...]:
        return lstm(*arguments)

    assert repaired({LSTM: right}) == {LSTM: right}


def test_final_states_are_captured_whatever_torch_makes_of_them() -> None:
    assert decompositions._is_right(export._decompositions()[LSTM])
    program = capture(Sequence({}).eval(), (torch.rand(2, 3, 5),)).program
    assert [str(spec.row_dim) for spec in program.outputs] == ["0", "0", "0"]
