"""An add() that fails half-way leaves no trace, even where memory ran out in the middle of it; nor does the end.

Runtime only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from threading import RLock
from typing import Any

from torch import Tensor, nn

from spacetime.backends import DeviceMemory
from spacetime.backends.threads import on_passing_thread
from spacetime.runtime.admission import Candidate
from spacetime.runtime.courtesy import courteous
from spacetime.runtime.memory import is_out_of_memory, out_of_memory
from spacetime.runtime.merging import Merging
from spacetime.runtime.prepare import Prepared, Preparer


def prepare_whole(
    preparer: Preparer, candidate: Candidate, device: str, memory: DeviceMemory, **options: Any
) -> Prepared:
    """Preparer.prepare(), all or nothing; what lanes may still read of memory that was replaced is handed to them."""
    name, module, example = candidate.name, candidate.module, candidate.example
    cohorts = [executable.cohort for executable in preparer.cohorts.values()]
    before = [(layer, layer.stack) for cohort in cohorts for layer in cohort.layers]
    try:
        with courteous(), _all_or_nothing(preparer, name, module):
            return on_passing_thread(lambda: preparer.prepare(name, module, example, **options))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(name, device, error) from error
    finally:
        replaced = [stack for layer, stack in before if layer.stack is not stack]
        memory.retire(replaced)
        preparer.hold(replaced)


@contextmanager
def _all_or_nothing(preparer: Preparer, name: str, module: nn.Module) -> Iterator[None]:
    """Taking back allocates nothing: the module's own memory is kept for that."""
    before = [(tensor, tensor.data) for tensor in chain(module.parameters(), module.buffers())]
    try:
        yield
    except BaseException:
        _take_back(preparer, name, before)
        raise


def _take_back(preparer: Preparer, name: str, before: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in before:
        if tensor.data_ptr() != data.data_ptr():
            tensor.data = data
    _leave_companions(preparer, name)
    for signature, executable in list(preparer.cohorts.items()):
        cohort = executable.cohort
        cohort.members.pop(name, None)
        used = {member.slot for member in cohort.members.values()}
        for layer in cohort.layers:
            for slot, entry in enumerate(layer.entries):
                if entry >= 0 and slot not in used:
                    layer.drop(slot)
        if not cohort.members:
            preparer._disband(signature)


def _leave_companions(preparer: Preparer, name: str) -> None:
    """All but its cohort."""
    preparer.modules.pop(name, None)  # it may have been prepared: Ctrl-C comes to the thread that waits for it
    for alike, meeting in list(preparer.meetings.items()):
        if name in meeting.arena:
            meeting.arena.drop(name)
        if not meeting.arena.names:
            del preparer.meetings[alike]
    for key, varying in list(preparer.varying.items()):
        if name in varying:
            varying.leave(name)
        if varying.is_empty:
            del preparer.varying[key]


def release(residents: dict[str, Any], preparer: Preparer, changing: RLock, merging: Merging | None) -> None:
    """Nothing runs any more: every module gets memory of its own."""
    if merging is not None:
        merging.stop()
    with changing:
        for name in list(residents):
            del residents[name]
            preparer.forget(name)
