"""Small modules with one habit each, and what tests compare. Shared by the runtime's tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.capture.selfcheck import problem
from spacetime.errors import SpacetimeError

PATIENCE_S = 60  # a hang fails the test instead of the suite
WIDTH = 4
X = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
EXAMPLE = (X,)


def tiny(seed: int = 0) -> nn.Sequential:
    """A module that fuses, of the smallest kind."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))
    module.eval()
    return module


class RowMixing(nn.Module):
    """Centres its batch: a row's result depends on its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(nn.Module):
    """Writes its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Branching(nn.Module):
    """Decides by the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class TwoFaced(nn.Module):
    """Computes something else when it is exported than when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_exporting() else 3 * x


class Refusing(nn.Module):
    """Raises for negative inputs; that it looks at values makes it opaque."""

    def forward(self, x: Tensor) -> Tensor:
        if x.min() < 0:
            raise ArithmeticError("negative input")
        return x.sqrt()


class Lookup(nn.Module):
    """An embedding and a head: an index out of range raises inside the fused batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.table = nn.Embedding(10, WIDTH)
            self.head = nn.Linear(WIDTH, 2)
        self.eval()

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(index))
        return result


class Gate(nn.Module):
    """Opaque; once closed, its forward waits inside the lane until the test opens it again."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()
        self.eval()

    def close(self) -> None:
        self.entered.clear()
        self.opened.clear()

    def open(self) -> None:
        self.opened.set()

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():  # looks at values: cannot be exported
            return x
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        return x + 1


def live_threads() -> set[threading.Thread]:
    """All that run, but for what torch.export leaves behind when it is used first: the clock of a progress bar."""
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}


def plain(module: nn.Module, *args: Any) -> Any:
    """What the module answers by itself."""
    with torch.no_grad():
        return module(*args)


def assert_equal(result: Any, reference: Any, scales: Sequence[float] = ()) -> None:
    """Within the numerics contract, structure included. `scales`: how large each output gets elsewhere."""
    leaves, spec = pytree.tree_flatten(result)
    expected, expected_spec = pytree.tree_flatten(reference)
    assert spec == expected_spec
    assert problem(leaves, expected, scales) is None


def assert_three_parts(error: BaseException, what: str, facts: str, next_step: str) -> None:
    """An error says what failed, the facts, and what to do next."""
    assert isinstance(error, SpacetimeError)
    for text, expected in ((error.what, what), (error.facts, facts), (error.next_step, next_step)):
        assert expected in text, str(error)
    assert str(error).splitlines() == [error.what, f"  {error.facts}", f"  {error.next_step}"]
