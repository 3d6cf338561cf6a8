"""What captures have in common, of a lane with its mix (captured.py) or of any mix (anymix.py); nobody else uses it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spacetime.backends.cuda.gpu import Gpu, Replayable, Stream
from spacetime.backends.executables import CohortExecutable
from spacetime.capture.layer import Layer
from spacetime.errors import InputError, SpacetimeError
from spacetime.kernels.bound import entry_table
from spacetime.scheduler.protocols import Outcome


class GraphError(SpacetimeError, RuntimeError):
    """A lane that could not be captured. It runs eagerly."""


EAGERLY = "there is nothing to do: the lane runs eagerly, as explain() says"  # the next step of every GraphError


class Outdated(Exception):
    """A tenant left while its graph was made. Says nothing about others."""


class Disturbed(Exception):
    """A call elsewhere broke the capture, such as a wait for the whole device. Says nothing about the lane."""


# Of cudaErrorStreamCaptureInvalidated, which is what all calls say after the one that was at fault. A lane that does
# what no capture allows is told so first.
_INVALIDATED = "previous error during capture"


def fault(num_rows: int) -> InputError:
    facts = f"in one of the request's {num_rows} rows"
    return InputError("an index is outside the table of its embedding", facts, "check the inputs' range")


def checked(outcomes: Sequence[Outcome], cause: Exception | None = None) -> Sequence[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome.error, torch.OutOfMemoryError):
            raise outcome.error
        if outcome.error is not None:
            facts = f"{type(outcome.error).__name__}: {outcome.error}"
            raise GraphError("a lane cannot be captured", facts, EAGERLY) from (cause or outcome.error)
    return outcomes


def leaves_of(outcomes: Sequence[Outcome]) -> list[Any]:
    return [leaf for outcome in outcomes for leaf in pytree.tree_leaves(outcome.value)]


def addresses(executable: CohortExecutable) -> tuple[int, ...]:
    """Where the cohort's slabs are, and its table of entries, which this brings up to date."""
    return addresses_of(executable.cohort.layers, executable.kernels)


def addresses_of(layers: Sequence[Layer], kernels: Sequence[Any]) -> tuple[int, ...]:
    """The same of the kernels that read these layers."""
    table = entry_table(kernels)
    found = [layer.stack.data_ptr() for layer in layers]
    return tuple(found if table is None else [*found, *table.tables().identity])


def looks_up(executable: CohortExecutable) -> bool:
    """Does its program mark rows that asked for what does not exist?"""
    return any(step.target == "gpu_faults" for step in executable.cohort.fused.steps)


def faulty(faults: Tensor, counts: Sequence[int]) -> set[int]:
    """Requests with a marked row. Waits for the lane, like its thread does anyway."""
    ends = list(accumulate(counts))
    return {bisect_right(ends, row) for row in faults[: ends[-1]].nonzero().flatten().tolist()}


def recorded(gpu: Gpu, stream: Stream, function: Callable[[], None]) -> tuple[Replayable, list[Tensor]]:
    """A graph of what the function does, and what it reads. Its own error says more than that of the capture."""
    reads, errors = Reads(), list[BaseException]()

    def watched() -> None:
        try:
            with reads:
                function()
        except BaseException as error:
            errors.append(error)
            raise

    try:
        return gpu.capture(stream, watched), reads.found
    except Exception as error:
        first = errors[0] if errors else error
        if _INVALIDATED in str(first):
            raise Disturbed(str(first).partition("\n")[0]) from error
        if first is not error:
            raise first from error
        raise


def pattern(shape: Tensor) -> Tensor:
    """An input of this shape that any module accepts: small numbers, and index 0. Draws nothing from a generator."""
    if not shape.dtype.is_floating_point:
        return torch.zeros(shape.shape, dtype=shape.dtype)
    values = torch.arange(shape.numel(), dtype=torch.float32).mul_(7).remainder_(13).sub_(6).div_(6)
    return values.reshape(shape.shape).to(shape.dtype)


class Reads(TorchDispatchMode):
    """Finds the tensors that a capture reads and does not make: the graph must keep them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Tensor] = []
        self._known: set[int] = set()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), self.found)
        result = func(*args, **(kwargs or {}))
        self._note(result, None)
        return result

    def _note(self, values: Any, found: list[Tensor] | None) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor) and (number := leaf.untyped_storage()._cdata) not in self._known:
                self._known.add(number)
                if found is not None:
                    found.append(leaf)
