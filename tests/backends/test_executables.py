"""Cohorts that change while their lanes run."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture import slab
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.runtime.prepare import Preparer
from tests.backends.conformance import PATIENCE_S
from tests.runtime.models import EXAMPLE, X, plain, tiny


def test_memory_that_weights_leave_lives_as_long_as_the_modules_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab that grows moves the parameters of modules that are running; torch does not hold their old memory."""
    monkeypatch.setattr(slab, "_RESERVE", 1)
    preparer, module = Preparer(), tiny(0)
    expected = plain(module, X)
    executable = preparer.prepare("first", module, EXAMPLE, exact=False).executable
    assert isinstance(executable, CohortExecutable)
    old = weakref.ref(executable.cohort.layers[0].stack)
    entered, go = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        entered.set()
        assert go.wait(PATIENCE_S)

    module.register_forward_pre_hook(pause)
    lane = Lane("cohort", (RequestView(0, "first", 2, 0),), (Segment(Partition(1, 1, 1)),), fused=False)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(executable.run, lane, [Call(EXAMPLE, EXAMPLE)])
        assert entered.wait(PATIENCE_S)
        preparer.prepare("second", tiny(1), EXAMPLE, exact=False)
        gc.collect()
        assert executable.cohort.layers[0].stack.shape[0] == 2 and old() is not None
        go.set()
        (outcome,) = running.result(PATIENCE_S)
        assert torch.equal(outcome.value, expected)
    gc.collect()
    assert old() is None, "and no longer"
