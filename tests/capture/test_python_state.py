"""What a module does beside computing is noticed, and nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.capture.python_state import hooked, untouched
from spacetime.capture.recorder import record

X = (torch.linspace(-1, 1, 16).view(2, 8),)


class Keeping(nn.Module):
    """Calls a function with itself and the input, and doubles it."""

    def __init__(self, keep: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.keep = keep
        self.count, self.last, self.seen, self.table = 0, None, list[Tensor](), None
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.keep(self, x)
        return x * 2


def counts(module: Any, x: Tensor) -> None:
    module.count += 1


def keeps(module: Any, x: Tensor) -> None:
    module.last = x


def appends(module: Any, x: Tensor) -> None:
    module.seen.append(x)


def adds(module: Any, x: Tensor) -> None:
    module.new = x


def grows(module: Any, x: Tensor) -> None:
    module.cache = torch.cat([module.cache, x])


def makes_once(module: Any, x: Tensor) -> None:
    if module.table is None:
        module.table = torch.arange(x.shape[1])


def changes_nothing(module: Any, x: Tensor) -> None:
    module.count, module.last = 0, None


@pytest.mark.parametrize(
    ("keep", "name"), [(counts, "count"), (keeps, "last"), (appends, "seen"), (adds, "new"), (grows, "cache")]
)
def test_what_a_module_keeps_is_noticed_and_put_back(keep: Callable[[Any, Tensor], None], name: str) -> None:
    module = Keeping(keep)
    cache = module.cache
    assert record(module, X).wrote == f"its own state: {name}"
    assert (module.count, module.last, hasattr(module, "new")) == (0, None, False)
    assert module.cache is cache


@pytest.mark.parametrize("keep", [makes_once, changes_nothing])
def test_what_stays_the_same_is_no_state(keep: Callable[[Any, Tensor], None]) -> None:
    assert record(Keeping(keep), X).wrote is None


def test_inputs_that_are_written_to_are_noticed_and_stay_as_they_are() -> None:
    before = X[0].clone()
    recording = record(nn.ReLU(inplace=True), X)
    assert recording.wrote == "its inputs: 0"
    assert torch.equal(X[0], before)


def test_hooks_of_any_part_are_found() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    assert hooked(module) is None
    handle = module[1].register_forward_hook(lambda *_: None)
    assert hooked(module) == "1"
    handle.remove()
    module.register_forward_pre_hook(lambda *_: None)
    assert hooked(module) == "itself"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_of_torch_compute_are_part_of_the_module(norm: Callable[[nn.Module], nn.Module]) -> None:
    module = norm(nn.Linear(8, 8)).eval()
    assert hooked(module) is None
    assert record(module, X).wrote is None


def test_attributes_are_put_back_however_the_block_ends() -> None:
    module = Keeping(keeps)
    with pytest.raises(ArithmeticError), untouched(module):
        module(*X)
        adds(module, *X)
        raise ArithmeticError
    assert module.last is None and not hasattr(module, "new")
