"""Inputs by name, as a tokenizer gives them: which position of `forward` each has. Used by capture/ and above.

Programs, lanes and contracts know positions only. Where the names of an example are not the first inputs of `forward`
(one between them is left out, or can be given by name only) a module around it, `ByName`, gives them positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from torch import nn

from spacetime.errors import CaptureError

Example = tuple[Any, ...] | Mapping[str, Any]

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class ByName(nn.Module):
    """Calls a module with its positional inputs by name. Parameters, buffers and results are the module's own."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.training = module.training

    def forward(self, *inputs: Any) -> Any:
        return self.module(**dict(zip(self.names, inputs, strict=True)))


def positional(where: str, module: nn.Module, example: Example) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module to call and its inputs by position, in the order of forward's signature; a tuple stays as it is."""
    if not isinstance(example, Mapping):
        return module, example
    parameters = _parameters(module)
    _check_names(where, parameters, example)
    order = [name for name in parameters if name in example]
    order += [name for name in example if name not in parameters]  # forward(**others) takes them
    inputs = tuple([example[name] for name in order])
    if tuple(order) == input_names(module)[: len(order)]:
        return module, inputs
    return ByName(module, tuple(order)), inputs


def input_names(module: nn.Module) -> tuple[str, ...]:
    """What its forward calls the inputs that may be given by position, in order; none where it does not say."""
    if isinstance(module, ByName):
        return module.names
    return tuple([name for name, parameter in _parameters(module).items() if parameter.kind in _BY_POSITION])


def _parameters(module: nn.Module) -> Mapping[str, Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # code that is not Python's
        return {}


def _check_names(where: str, parameters: Mapping[str, Parameter], example: Mapping[str, Any]) -> None:
    known = [name for name, parameter in parameters.items() if parameter.kind in _BY_NAME]
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [name for name in example if not isinstance(name, str) or not (name in known or takes_any)]
    calls = f"forward calls its inputs {', '.join(known)}" if known else "forward names no inputs"
    if unknown:
        what = f"{where}: the example names {', '.join(map(repr, unknown))}, which forward does not take"
        raise CaptureError(what, calls, "pass those that it takes, or a tuple of positional inputs")
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and parameter.kind in (*_BY_POSITION, Parameter.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in example]
    if missing:
        what = f"{where}: the example lacks {', '.join(map(repr, missing))}"
        facts = f"{calls}; the example names {', '.join(example) or 'none'}"
        raise CaptureError(what, facts, "pass an example that module(**example) accepts")
