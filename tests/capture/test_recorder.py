"""One recorded run tells architectures apart without an export, and leaves the module as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spacetime.capture.program import storage_key
from spacetime.capture.recorder import owned_tensors, record
from spacetime.zoo import SMALL, build, example
from tests.capture.sketches import draw, sketch
from tests.capture.tenants import leaves_of
from tests.capture.test_export import Counting
from tests.capture.test_program import variants

VECTOR = draw(((8,),), 2, seed=0)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("mobilenet_v2", "resnet18")])
def test_seeds_share_a_fingerprint_and_results_are_those_of_the_plain_run(name: str) -> None:
    one, other = build(name, seed=0), build(name, seed=1)
    inputs = example(name)
    first, second = record(one, inputs), record(other, example(name, seed=5))
    assert first.fingerprint == second.fingerprint
    assert first.wrote is None
    assert all(torch.equal(a, b) for a, b in zip(first.outputs, leaves_of(one, inputs), strict=True))


def test_different_work_has_different_fingerprints() -> None:
    fingerprints = {name: record(*variant).fingerprint for name, variant in variants().items()}
    assert len(set(fingerprints.values())) == len(fingerprints), fingerprints


def test_the_number_of_rows_is_not_taken_for_a_literal() -> None:
    """With an example of two rows both divide by two."""
    by_rows = sketch(lambda m, x: x / x.shape[0], {})
    by_two = sketch(lambda m, x: x / 2, {})
    assert torch.equal(by_rows(*VECTOR), by_two(*VECTOR))
    assert record(by_rows, VECTOR).fingerprint != record(by_two, VECTOR).fingerprint


def test_the_first_row_runs_alone_as_well() -> None:
    """Export takes no notice of a branch for single rows; the reference for the self-check does."""
    module = sketch(lambda m, x: x if x.shape[0] == 1 else x * 2, {})
    recording = record(module, VECTOR)
    assert torch.equal(recording.outputs[0], VECTOR[0] * 2)
    assert recording.first_row is not None
    assert torch.equal(recording.first_row[0], VECTOR[0][:1])
    assert recording.fingerprint != record(sketch(lambda m, x: x * 2, {}), VECTOR).fingerprint


def test_a_module_that_refuses_a_single_row_is_recorded_all_the_same() -> None:
    only_two = sketch(lambda m, x: x.view(2, 8) * 2, {})
    assert record(only_two, VECTOR).first_row is None


def test_written_buffers_are_reported_and_put_back() -> None:
    module = Counting()
    recording = record(module, VECTOR)
    assert recording.wrote == "its own state: calls"
    assert module.calls.item() == 0


def test_batch_norm_in_training_mode_writes_and_is_put_back() -> None:
    module = nn.BatchNorm1d(8).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert record(module, VECTOR).wrote in {f"its own state: {key}" for key in before}
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


def test_exceptions_of_the_module_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        record(nn.Linear(7, 3), VECTOR)


class Shared(nn.Module):
    """Two names, two parameters, one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.two = nn.Linear(8, 8, bias=False)
        self.two.weight = nn.Parameter(self.one.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(x))
        return result


def test_weights_are_found_by_their_storage() -> None:
    module = Shared()
    assert record(module, VECTOR).weights == (storage_key(module.one.weight),)
    (owners,) = owned_tensors(module).values()
    assert {id(tensor) for tensor in owners} == {id(module.one.weight), id(module.two.weight)}


def test_weights_come_in_order_of_use() -> None:
    module = sketch(lambda m, x: (x * m.b) + m.a, {"a": (8,), "b": (8,)})
    assert record(module, VECTOR).weights == tuple(storage_key(module.get_parameter(name)) for name in "ba")
