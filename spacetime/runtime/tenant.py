"""A tenant's handle: call it, submit to it, await it. Made by Runtime.add()."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from torch import nn

from spacetime.errors import CaptureError
from spacetime.scheduler.driver import Result

Submit = Callable[[tuple[Any, ...], bool], Result[Any]]  # (arguments, will the caller see to it that they are planned?)


class Tenant:
    """A model that shares its device. Handles are cheap, thread-safe, and valid until the tenant is removed."""

    def __init__(self, name: str, submit: Submit) -> None:
        self.name = name
        self._submit = submit

    def __call__(self, *args: Any) -> Any:
        """The module's result for these inputs; blocks until it is there."""
        return self._submit(args, True).result()

    def submit(self, *args: Any) -> Future[Any]:
        """The result as a future. Cancelling it works until its lane starts."""
        return self._submit(args, False)

    async def asubmit(self, *args: Any) -> Any:
        """The result, for asyncio."""
        result = self._submit(args, True)
        # What one iteration of the event loop submits is planned together, by the next one; lanes run elsewhere.
        asyncio.get_running_loop().call_soon(result.plan)
        return await asyncio.wrap_future(result)

    def __repr__(self) -> str:
        return f"Tenant({self.name!r})"


class Wrapped(nn.Module):
    """A drop-in for a module: same parameters, same results, but its forward goes through a runtime."""

    def __init__(self, module: nn.Module, tenant: Tenant) -> None:
        super().__init__()
        self.module = module
        self.tenant = tenant
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

    def forward(self, *args: Any) -> Any:
        return self.tenant(*args)
