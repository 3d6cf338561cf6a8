"""What is asked of torch on behalf of threads that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from spacetime.backends import threads


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    threads.keep_device_guard.cache_clear()
    yield
    threads.keep_device_guard.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "available", "asks"), [("13.0", False, True), ("13.0", True, False), (None, False, False)]
)
def test_the_guard_of_a_device_that_is_not_there_is_kept_by_a_thread_that_stays(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, available: bool, asks: bool
) -> None:
    asked: list[threading.Thread] = []
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(
        torch._C, "_ensureCUDADeviceGuardSet", lambda: asked.append(threading.current_thread()), raising=False
    )
    for _ in range(2):
        assert threads.on_passing_thread(lambda: threading.current_thread().name) != "spacetime-device-guard"
    assert len(asked) == asks
    assert all(thread.is_alive() and thread.daemon for thread in asked)


def test_a_torch_that_has_no_such_guard_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch._C, "_ensureCUDADeviceGuardSet", raising=False)
    assert threads.on_passing_thread(lambda: 3) == 3


def test_modules_are_exported_on_one_thread_after_the_other() -> None:
    module, example = torch.nn.Linear(2, 2), (torch.rand(3, 2),)
    for _ in range(3):
        exported = threads.on_passing_thread(lambda: torch.export.export(module, example))
        assert torch.equal(exported.module()(*example), module(*example))
