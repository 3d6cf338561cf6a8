"""The functions of the public namespace that belong to no class. `import spacetime as st` re-exports them."""

from __future__ import annotations

from typing import Any

from torch import nn

from spacetime.capture.export import Unfusible, export
from spacetime.capture.program import build_program
from spacetime.capture.rows import prove
from spacetime.errors import CaptureError
from spacetime.ir import Program


def capture(module: nn.Module, example: tuple[Any, ...]) -> Program:
    """The kernels of a module and its signature; `CaptureError` says why a module has none."""
    try:
        exported = export(module, example)
        return build_program(exported, prove(exported)).program
    except Unfusible as why:
        raise CaptureError(
            f"{type(module).__name__} cannot be captured", str(why), "as a tenant it would run whole, in its own lane"
        ) from why
