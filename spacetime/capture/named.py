"""Inputs by name, as a tokenizer gives them: which position of `forward` each has. Used by capture/ and above.

Programs, lanes and contracts know positions only. Where the names of an example are not the first inputs of `forward`
(one between them is left out, or can be given by name only) a module around it, `ByName`, gives them positions. An
input that is None in the example is None in every call: `WithNone` puts it there, and what serves has tensors only.
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


class WithNone(nn.Module):
    """Calls a module with None at some positions, and its inputs at the others."""

    def __init__(self, module: nn.Module, omitted: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        self.omitted = omitted
        self.training = module.training

    def forward(self, *inputs: Any) -> Any:
        filled = list(inputs)
        for position in self.omitted:  # in ascending order
            filled.insert(position, None)
        return self.module(*filled)


def positional(where: str, module: nn.Module, example: Example) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module to call and its inputs by position, in the order of forward's signature and without those that are
    None.
    """
    module, inputs = _by_position(where, module, example) if isinstance(example, Mapping) else (module, example)
    if not isinstance(inputs, tuple):
        return module, inputs  # not an example
    omitted = tuple([position for position, value in enumerate(inputs) if value is None])
    if not omitted or len(omitted) == len(inputs):
        return module, inputs
    return WithNone(module, omitted), tuple([value for value in inputs if value is not None])


def _by_position(where: str, module: nn.Module, example: Mapping[str, Any]) -> tuple[nn.Module, tuple[Any, ...]]:
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
    if isinstance(module, WithNone):
        names = input_names(module.module)
        return tuple([name for position, name in enumerate(names) if position not in module.omitted])
    return tuple([name for name, parameter in _parameters(module).items() if parameter.kind in _BY_POSITION])


def omitted_inputs(module: nn.Module) -> dict[int, str]:
    """Positions that are None in every call, and what they are called, as far as that is known."""
    if not isinstance(module, WithNone):
        return {}
    names = input_names(module.module)
    return {position: names[position] if position < len(names) else "" for position in module.omitted}


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
