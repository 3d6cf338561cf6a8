"""What add() looks at before any work: is it a module that can serve, with an example that it could be tried on?"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from spacetime.errors import CaptureError, OptionError
from spacetime.runtime.tenant import Wrapped


def check_module(name: str, module: nn.Module, device: str) -> None:
    if not isinstance(name, str) or not name:
        raise OptionError(f"a tenant's name is {name!r}", "names are non-empty strings", "pass another one")
    if not _is_text(name):
        facts = "it has surrogates by themselves, which cannot be printed or written to a file"
        raise OptionError(f"a tenant's name is {name!r}", facts, "pass another one")
    if not isinstance(module, nn.Module):
        facts = "a tenant is a torch.nn.Module"
        raise CaptureError(f"tenant {name!r} is a {type(module).__name__}", facts, "wrap the function in a module")
    training = [path or "itself" for path, part in module.named_modules() if part.training and not _is_graph(part)]
    if training:
        facts = f"{len(training)} modules, the first is {training[0]!r}"
        raise CaptureError(f"tenant {name!r}: the module is in training mode", facts, "call module.eval() first")
    for path, part in module.named_modules():
        if isinstance(part, Wrapped):
            raise CaptureError(
                f"tenant {name!r}: {path or 'the module'} is tenant {part.tenant.name!r}",
                "a lane must not wait for another lane",
                "add the plain module",
            )
    for path, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise CaptureError(
                f"tenant {name!r}: {path} has no shape yet",
                "a lazy module makes its weights when it is called first",
                "call module(*example) once, before add()",
            )
        if tensor.device != torch.device(device):
            raise CaptureError(
                f"tenant {name!r}: {path} is on {tensor.device}", f"the runtime is on {device}", f"move it to {device}"
            )


def _is_graph(part: nn.Module) -> bool:
    """Has it no code that could look whether it is in training? torch.export makes such modules, without an eval()."""
    kind = type(part)
    return isinstance(part, torch.fx.GraphModule) or kind is nn.Module or kind.__module__.startswith("torch.export.")


def _is_text(name: str) -> bool:
    """What a file name was decoded to with "surrogateescape" may be none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def brought(example: Any, device: str) -> Any:
    """Inputs may be on the host; the module that is tried with them is not."""
    if device == "cpu":
        return example
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) and leaf.ndim else leaf, example)


def check_example(name: str, example: tuple[Any, ...]) -> None:
    if not isinstance(example, tuple) or not example:
        kind = "empty" if isinstance(example, tuple) else f"a {type(example).__name__}"
        raise CaptureError(
            f"tenant {name!r}: the example is {kind}",
            "an example is a tuple of positional inputs, or a dict of inputs by name",
            'pass example=(tensor,), or example={"x": tensor}',
        )
    for index, leaf in enumerate(pytree.tree_leaves(example)):
        if isinstance(leaf, Tensor) and leaf.is_nested:
            raise CaptureError(
                f"tenant {name!r}: input {index} of the example is nested",
                "its rows have no common shape, by which requests could be judged",
                "pad it, or add(dynamic=) where one length varies",
            )
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 0:
            raise CaptureError(
                f"tenant {name!r}: input {index} of the example has no rows",
                f"its shape is {tuple(leaf.shape)}",
                "pass an example of one row or more",
            )
