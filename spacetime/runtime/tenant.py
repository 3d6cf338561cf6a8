"""A tenant's handle: call it, submit to it, await it. Made by Runtime.add()."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NoReturn, Self

import torch
from torch import nn

from spacetime.errors import CaptureError, InputError
from spacetime.scheduler.driver import Result

Submit = Callable[[tuple[Any, ...], bool], Result[Any]]  # (arguments, will the caller see to it that they are planned?)


class Tenant:
    """A model that shares its device. Handles are cheap, thread-safe, and valid until the tenant is removed.

    Inputs are the example's, by position, or by the names that the module's forward gives them: `bert(ids, mask)`,
    `bert(**tokenizer(texts, return_tensors="pt"))`.
    """

    def __init__(
        self, name: str, submit: Submit, inputs: tuple[str, ...] = (), omitted: Mapping[int, str] | None = None
    ) -> None:
        """`inputs`: what its positional inputs are called, in order. `omitted`: positions between them, and their
        names, that were None in the example, where a call may say None as well.
        """
        self.name = name
        self._submit = submit
        self._inputs = inputs
        self._omitted = dict(omitted or {})

    def __call__(self, /, *args: Any, **named: Any) -> Any:
        """The module's result for these inputs; blocks until it is there."""
        if named or self._omitted:
            args = self._in_order(args, named)
        return self._submit(args, True).result()

    def submit(self, /, *args: Any, **named: Any) -> Future[Any]:
        """The result as a future. Cancelling it works until its lane starts."""
        if named or self._omitted:
            args = self._in_order(args, named)
        return self._submit(args, False)

    async def asubmit(self, /, *args: Any, **named: Any) -> Any:
        """The result, for asyncio."""
        if named or self._omitted:
            args = self._in_order(args, named)
        result = self._submit(args, True)
        # What one iteration of the event loop submits is planned together, by the next one. Lanes run elsewhere, but
        # for those so short that to hand them over would take the event loop more of its time.
        asyncio.get_running_loop().call_soon(result.plan)
        wrapped = asyncio.wrap_future(result)
        del result  # the error that may be raised here holds this frame, and the future the error
        try:
            return await wrapped
        finally:
            del wrapped

    def _in_order(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """All inputs by position: the named ones are those that follow. None where the example had it is left out."""
        if self._omitted:
            args = tuple([arg for position, arg in enumerate(args) if arg is not None or position not in self._omitted])
            absent = self._omitted.values()
            named = {name: value for name, value in named.items() if value is not None or name not in absent}
        following = self._inputs[len(args) : len(args) + len(named)]
        if named.keys() != set(following):
            wrong = ", ".join(name for name in named if name not in following)
            what = f"tenant {self.name!r}: {wrong} cannot be given by name here"
            names = f"forward calls its inputs {', '.join(self._inputs)}" if self._inputs else "forward names no inputs"
            facts = f"{names}; {len(args)} were given by position"
            raise InputError(what, facts, "pass those of the example, none left out; wrap the module to set others")
        return (*args, *[named[name] for name in following])

    def __repr__(self) -> str:
        return f"Tenant({self.name!r})"

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise CaptureError(
            f"tenant {self.name!r} cannot be pickled, nor copied in depth",
            "a handle leads to a runtime, which belongs to one process",
            "copy the plain module: wrap()'s is its attribute `module`",
        )


class Wrapped(nn.Module):
    """A drop-in for a module: same parameters, same results, but its forward goes through a runtime."""

    def __init__(self, module: nn.Module, tenant: Tenant) -> None:
        super().__init__()
        self.module = module
        self.tenant = tenant
        self._call = torch.compiler.disable(tenant)  # what torch.compile makes of a loop that serves others is no good
        self.training = module.training

    def train(self, mode: bool = True) -> Self:
        """A tenant stays in inference mode: its lanes may run the module itself, or a program made of it."""
        if mode:
            raise CaptureError(
                f"tenant {self.tenant.name!r} cannot be put in training mode",
                "a runtime serves inference",
                f"remove({self.tenant.name!r}), and train the plain module",
            )
        return super().train(mode)

    def forward(self, /, *args: Any, **named: Any) -> Any:
        return self._call(*args, **named)
