"""What a module does around its kernels, measured on an empty batch. Only source.py imports it.

A program's kernels are timed one by one, in a straight function. Whoever calls the module pays for more than that:
torch.nn's own code for every layer, which is quick beside a large kernel and half of a small model. A call with no rows
runs all of that code, and the same kernels with nothing to do, so

    code = the module on no rows - its kernels on no rows.

Code is slower where kernels have filled the caches. How much slower tells the straight function's own code, which is
timed with rows and without: the module's code is taken to slow down as much. (Not where there are whole operations:
then the straight function's code is mostly the views inside them, which the module has not.)

An LSTM or a GRU is one operation of torch's, and as many kernels as it has steps in a program. Where the module's
latency is asked for, it is that operation that counts, so it is timed where the module calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.profiler.site import Sample, Site
from spacetime.profiler.straight import Step

ONE_OPERATION = "torch.nn.modules.rnn."  # modules of these classes call one operation of torch's, at any length
Clock = Callable[[], float]
TimeStraight = Callable[[Sequence[Tensor]], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Whole:
    """One call of a module that is one operation, and kernels `first` to `last` of the program."""

    path: str  # of the module
    first: int
    last: int


def wholes(steps: Iterable[Step]) -> tuple[Whole, ...] | None:
    """In the order that they are called. None: kernels of others lie among theirs, so they cannot be told apart."""
    calls: dict[str, tuple[str, list[int]]] = {}
    for step in steps:
        for call, (path, kind) in (step.node.meta.get("nn_module_stack") or {}).items():
            if step.kernel is not None and _class_name(kind).startswith(ONE_OPERATION):
                calls.setdefault(call, (path, []))[1].append(step.kernel)
    if any(kernels != list(range(kernels[0], kernels[-1] + 1)) for _, kernels in calls.values()):
        return None
    return tuple(Whole(path, kernels[0], kernels[-1]) for path, kernels in calls.values())


@dataclass(frozen=True, eq=False)
class Around:
    """A module, as it is called."""

    module: nn.Module
    in_spec: pytree.TreeSpec
    wholes: tuple[Whole, ...]

    @classmethod
    def of(
        cls, module: nn.Module, in_spec: pytree.TreeSpec, found: tuple[Whole, ...] | None, example: Sequence[Tensor]
    ) -> Around | None:
        """None: the module refuses a batch without rows, or calls its operations otherwise then."""
        if found is None:
            return None
        made = cls(module, in_spec, found)
        try:
            _, spans = made._call(_empty(example), lambda: 0.0)
        except Exception:  # whatever a module does about shapes that it does not expect
            return None
        return made if len(spans) == len(found) else None

    def time(self, leaves: Sequence[Tensor], site: Site, run: Sequence[Sample], straight: TimeStraight) -> list[Sample]:
        """The code around the kernels, as slow as in `run`, a straight run with rows; then every whole operation."""
        none, interruptions = _empty(leaves), site.interruptions()
        spans: list[float] = []
        if self.wholes:
            self._call(leaves, site.now_us)  # finds the caches as other runs left them, and does not count
            interruptions = site.interruptions()
            _, spans = self._call(leaves, site.now_us)
        disturbed = site.interruptions() > interruptions
        empty_us, is_clean = self._empty_us(none, site)
        straight(none)
        idle = straight(none)
        inside = {kernel for each in self.wholes for kernel in range(each.first, each.last + 1)}
        kernels_us = sum(sample.us for kernel, sample in enumerate(idle[:-1]) if kernel not in inside)
        slower = run[-1].us / idle[-1].us if idle[-1].us > 0 and not self.wholes else 1.0
        code = Sample(max(empty_us - kernels_us, 0.0) * slower, run[-1].disturbed or idle[-1].disturbed or not is_clean)
        return [code, *(Sample(us, disturbed) for us in spans)]

    def _empty_us(self, none: Sequence[Tensor], site: Site) -> tuple[float, bool]:
        """A call without rows, and whether nothing interrupted it; whole operations in it do not count."""
        self._call(none, site.now_us)
        interruptions = site.interruptions()
        us, spans = self._call(none, site.now_us)
        return us - sum(spans), site.interruptions() == interruptions

    def _call(self, leaves: Sequence[Tensor], now: Clock) -> tuple[float, list[float]]:
        """How long it took, and each whole operation in it."""
        spans: list[float] = []
        args = pytree.tree_unflatten(list(leaves), self.in_spec)
        with ExitStack() as stack:
            for path in dict.fromkeys(each.path for each in self.wholes):
                stack.enter_context(_timed(self.module.get_submodule(path), now, spans))
            start_us = now()
            self.module(*args)
            us = now() - start_us
        return us, spans


@contextmanager
def _timed(module: nn.Module, now: Clock, spans: list[float]) -> Iterator[None]:
    """As long as this lasts, what its `forward` takes is noted. Hooks would take as long as a small layer."""
    before = vars(module).get("forward")
    forward = module.forward

    def timed_forward(*args: Any, **kwargs: Any) -> Any:
        start_us = now()
        result = forward(*args, **kwargs)
        spans.append(now() - start_us)
        return result

    vars(module)["forward"] = timed_forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def _empty(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [leaf[:0] for leaf in leaves]


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
