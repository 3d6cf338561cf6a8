"""Settings of the whole suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import haste

haste.let_threads_sleep()

# A deadline would turn a slow machine into a failing test; tests never time. The same examples for everyone, so
# that a failure belongs to the change; `--hypothesis-profile=explore` draws new ones, and more of them.
settings.register_profile("spacetime", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("spacetime")


def pytest_collection_finish() -> None:
    haste.settle()
    haste.leave_garbage()


@pytest.fixture(autouse=True)
def gradients_are_on() -> Iterator[None]:
    """Sides of a bench own their process, and switch gradients off in it; here they run in that of other tests."""
    yield
    torch = sys.modules.get("torch")  # tests of what needs no torch do not load it
    if torch is not None:
        torch.set_grad_enabled(True)
