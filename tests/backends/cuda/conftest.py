"""The fake GPU computes on CPU tensors and writes down what torch is asked to do, in lanes and in captures."""

from __future__ import annotations

import pytest

from spacetime.capture import slab


@pytest.fixture(autouse=True)
def no_kernels_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that go past torch would be missing in a capture, and its replay would answer with old numbers."""
    for user in ("kernels", "backends.executables"):
        monkeypatch.setattr(f"spacetime.{user}.host", lambda: None)
    # The fake's memory is a CPU's, but stands for a device's, where parameters are views of their slab's storage.
    monkeypatch.setattr(slab, "by_itself", lambda view: view)
