"""Calls of several programs that meet: each runs as a greenlet, and stops at the calls that others may make as well.

For modules that cannot be captured, because what they do depends on their data. They run as they are, on one thread,
taking turns: a module that comes to a linear or a convolution hands the call in and waits, and when everybody waits or
has ended, calls of equal key are made in one launch (intercepted.py). A switch costs half a microsecond; a thread's
hand-off would cost more than most launches.

What a thread has one of (autocast, inference mode, other modes of torch) would leak from a module that waits into the
one whose turn it is. So a call that is made under anything else than what the lane started with does not wait for
others: it is made at once.

Used by backends/intercepted.py only; imports the optional package greenlet when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spacetime.errors import OptionError


@dataclass(frozen=True, slots=True)
class MetCall:
    """A call that waits for its like. `options`: what is no tensor, by position or name, canonically."""

    function: Callable[..., Any]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    options: tuple[Any, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls of equal keys can be one launch: what is computed, on which shapes, whatever the number of rows."""
        x, weight = self.x, self.weight
        shapes = (tuple(x.shape[1:]), x.dtype, tuple(weight.shape), weight.dtype, self.bias is None)
        return (self.function, self.options, *shapes)

    def alone(self) -> Tensor:
        result: Tensor = self.function(self.x, self.weight, self.bias, *self.options)
        return result


Launch = Callable[[Sequence[MetCall]], Sequence[Tensor]]  # calls of one key; a result for each

# Positional parameters after (input, weight, bias), with their defaults.
_OPTIONS: dict[Any, tuple[tuple[str, Any], ...]] = {
    torch.nn.functional.linear: (),
    torch.conv1d: (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
    torch.conv2d: (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
}


def require_greenlet() -> None:
    """Whoever asks for interception is told at once when it cannot be."""
    try:
        import greenlet  # noqa: F401
    except ImportError as error:
        what = "intercepting calls needs the package greenlet"
        raise OptionError(
            what, str(error), "pip install 'spacetime-gpu[intercept]', or leave the option out"
        ) from error


def meet(bodies: Sequence[Callable[[], None]], launch: Launch) -> int:
    """Run all bodies to their ends, their calls together where they can be. Returns the number of launches saved.

    A body keeps its own errors; one that raises here is broken, and breaks the lane. A launch that fails is made call
    by call, and an error is raised where the call was made.
    """
    from greenlet import getcurrent, greenlet

    hub = getcurrent()
    base = _thread_state()

    def hand_in(call: MetCall) -> Tensor:
        if _thread_state() != base:
            return call.alone()
        result: Tensor = hub.switch(call)
        return result

    def program(body: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with _Intercept(hand_in):
                body()

        return run

    runners = [greenlet(program(body), parent=hub) for body in bodies]
    waiting = [(runner, call) for runner in runners if (call := runner.switch()) is not None]
    saved = 0
    while waiting:
        groups: dict[tuple[Any, ...], list[tuple[Any, MetCall]]] = {}
        for runner, call in waiting:
            groups.setdefault(call.key, []).append((runner, call))
        waiting = []
        for group in groups.values():
            saved += len(group) - 1
            for runner, resume in _answers(group, launch):
                call = resume()
                if call is not None:
                    waiting.append((runner, call))
    return saved


def _answers(group: list[tuple[Any, MetCall]], launch: Launch) -> list[tuple[Any, Callable[[], MetCall | None]]]:
    """For every runner of the group how it goes on: with its result, or with the error of its own call."""
    calls = [call for _, call in group]
    try:
        results: Sequence[Tensor | Exception] = launch(calls)
    except Exception:  # one of them is to blame: each by itself, so that nobody else suffers
        results = [_attempt(call) for call in calls]
    return [
        (runner, partial(runner.throw if isinstance(result, Exception) else runner.switch, result))
        for (runner, _), result in zip(group, results, strict=True)
    ]


def _attempt(call: MetCall) -> Tensor | Exception:
    try:
        return call.alone()
    except Exception as error:
        return error


class _Intercept(TorchFunctionMode):
    """On while a body runs. torch takes it off inside of the handler, so it is never on while another body runs."""

    def __init__(self, hand_in: Callable[[MetCall], Tensor]) -> None:
        super().__init__()
        self._hand_in = hand_in

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = _OPTIONS.get(func)
        call = None if names is None else _call(func, names, args, kwargs or {})
        return func(*args, **(kwargs or {})) if call is None else self._hand_in(call)


def _call(func: Any, names: tuple[tuple[str, Any], ...], args: Any, kwargs: dict[str, Any]) -> MetCall | None:
    """None for what is no plain call on tensors with rows: it is made as it is."""
    given = dict(zip(("input", "weight", "bias", *(name for name, _ in names)), args, strict=False)) | kwargs
    x, weight, bias = given.pop("input", None), given.pop("weight", None), given.pop("bias", None)
    if type(x) is not Tensor or not isinstance(weight, Tensor) or x.ndim < 2 or x.requires_grad:
        return None
    options = tuple([_hashable(given.pop(name, default)) for name, default in names])
    return None if given else MetCall(func, x, weight, bias, options)


def _hashable(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option


def _thread_state() -> tuple[Any, ...]:
    """What torch keeps per thread and a module may change while it runs."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
    )
