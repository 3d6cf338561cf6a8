"""The zoo keeps its promises: seeded, row-independent modules whose outputs follow their inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spacetime.errors import OptionError
from spacetime.zoo import SMALL, STANDARD, ZOO, build, example
from tests.slow import mostly

# The *_imagenet entries are for benches: half a gigabyte of weights each.
NAMES = [name for name in ZOO if not name.endswith("_imagenet")]
# Of a family that has a smaller member, built by the same code.
LARGE = ("resnet34", "resnet50", "vgg16")
ROWS = 3


@pytest.fixture(scope="module", params=mostly(NAMES, slow=LARGE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def module(name: str) -> nn.Module:
    return build(name)


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.inference_mode():
        leaves: list[Tensor] = tree_leaves(module(*inputs))
    return leaves


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def test_inputs_and_outputs_lead_with_the_rows(name: str, module: nn.Module) -> None:
    for rows in (1, ROWS):
        inputs = example(name, rows)
        outputs = outputs_of(module, inputs)
        assert {tensor.shape[0] for tensor in (*inputs, *outputs)} == {rows}
        assert {output.dtype for output in outputs} == {torch.float32}
        assert {tensor.dtype for tensor in inputs} <= {torch.float32, torch.int64}


def test_a_row_does_not_depend_on_its_batch(name: str, module: nn.Module) -> None:
    inputs = example(name, ROWS)
    batched = outputs_of(module, inputs)
    for row in range(ROWS):
        alone = outputs_of(module, tuple(tensor[row : row + 1] for tensor in inputs))
        for one, many in zip(alone, batched, strict=True):
            assert largest(one - many[row : row + 1]) <= 1e-5 * largest(many)


def test_outputs_follow_the_inputs(name: str, module: nn.Module) -> None:
    """Without this a comparison of outputs would prove nothing: 20 default layers return their last bias."""
    for output in outputs_of(module, example(name, ROWS)):
        assert output.isfinite().all()
        assert largest(output[0] - output[1]) > 0.01 * largest(output)


def test_running_a_module_leaves_it_unchanged(name: str, module: nn.Module) -> None:
    inputs = example(name, ROWS)
    for first, second in zip(outputs_of(module, inputs), outputs_of(module, inputs), strict=True):
        assert torch.equal(first, second)
    for used, fresh in zip(inputs, example(name, ROWS), strict=True):
        assert torch.equal(used, fresh)


def test_weights_follow_the_seed_and_nothing_else(name: str, module: nn.Module) -> None:
    torch.rand(1)  # moves the global generator, which must not matter
    again, other = build(name).state_dict(), build(name, seed=1).state_dict()
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, again[key]), key
        if tensor.is_floating_point():
            assert not torch.equal(tensor, other[key]), key


def test_modules_come_ready_for_inference_with_trainable_weights(name: str) -> None:
    module = build(name)
    assert not any(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_building_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    build(name, seed=5)
    example(name, ROWS, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_follow_the_seed(name: str) -> None:
    pairs = list(zip(example(name, ROWS, seed=1), example(name, ROWS, seed=2), strict=True))
    assert any(not torch.equal(one, two) for one, two in pairs)


def test_tied_embeddings_are_one_parameter() -> None:
    parameters = dict(build("tied_lm").named_parameters(remove_duplicate=False))
    assert parameters["head.weight"] is parameters["tokens.weight"]


def test_padding_does_not_reach_the_pooled_state_of_bert() -> None:
    module = build("bert")
    token_ids, segment_ids, mask = example("bert", ROWS)
    assert not mask.all()
    replaced = torch.where(mask.bool(), token_ids, 0)
    _, pooled = outputs_of(module, (token_ids, segment_ids, mask))
    _, same = outputs_of(module, (replaced, segment_ids, mask))
    _, unmasked = outputs_of(module, (token_ids, segment_ids, torch.ones_like(mask)))
    assert largest(pooled - same) <= 1e-5 * largest(pooled)
    assert largest(pooled - unmasked) > 1e-2 * largest(pooled)


def test_the_lists_name_entries() -> None:
    assert set(SMALL) <= set(STANDARD) <= set(ZOO)
    assert set(ZOO) - set(STANDARD) == {"vgg16", "resnet34", "vgg19_imagenet"}
    assert all(entry.name == key for key, entry in ZOO.items())


@pytest.mark.parametrize("ask", [build, example])
def test_an_unknown_name_is_refused_with_the_known_ones(ask: Callable[[str], object]) -> None:
    with pytest.raises(OptionError, match="'resnet19'") as caught:
        ask("resnet19")
    assert all(name in caught.value.facts for name in ZOO)
