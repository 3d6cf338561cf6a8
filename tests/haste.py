"""What makes tests cheaper and changes nothing that they can see. Used by conftest.py only."""

from __future__ import annotations

import gc
import os
import sys

_NEW_OBJECTS = 20_000  # before a collection; 700 by default, which is every few milliseconds of an export


def let_threads_sleep() -> None:
    """Before torch is imported: threads that wait for each other do not spin, since others need the cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def settle() -> None:
    """Once everything is imported: a million objects that never die are not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)


def leave_garbage() -> None:
    """After its exports a runtime looks through all objects that there are, for the sake of who is being served.

    Here there are hundreds of exports, and what they leave is found sooner or later anyway (test_courtesy.py).
    """
    prepare = sys.modules.get("spacetime.runtime.prepare")  # tests of what needs no torch do not load it
    if prepare is not None:
        prepare.collect_garbage = _nothing  # type: ignore[attr-defined]


def _nothing() -> None:
    pass
