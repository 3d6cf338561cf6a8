"""What a module keeps in Python beside its tensors, and whether running it changes that. Used by capture/ and runtime/.

A fused program is what a module computes; what else it does when it runs (counts, keeps its last input, calls hooks)
would silently be left out. Such modules run whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Size, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Attributes = dict[tuple[nn.Module, str], Any]

_COMPUTE_WEIGHTS = (WeightNorm, SpectralNorm)  # torch's own hooks: part of what is computed, and nothing else
# Hooks that hand parts' results to the model's own result (`output_hidden_states` of Hugging Face's models).
_COMPUTE_RESULTS = "transformers.utils.output_capturing"
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NOTHING = object()


def hooked(module: nn.Module) -> str | None:
    """The first part that calls somebody else's code when it runs; None if there is none."""
    for path, part in module.named_modules():
        if not all(map(_is_computation, _hooks(part))):
            return path or "itself"
    return None


def _is_computation(hook: Any) -> bool:
    return isinstance(hook, _COMPUTE_WEIGHTS) or getattr(hook, "__module__", None) == _COMPUTE_RESULTS


def attributes(module: nn.Module) -> Attributes:
    """By part and name, without parameters, buffers, parts, and what hooks compute."""
    found: Attributes = {}
    for part in module.modules():
        computed = {hook.name for hook in _hooks(part) if isinstance(hook, _COMPUTE_WEIGHTS)}
        for name, value in vars(part).items():
            if name not in _OF_EVERY_MODULE and name not in computed:
                found[part, name] = (value, len(value)) if isinstance(value, (list, dict, set)) else (value, None)
    return found


def written(before: Attributes, after: Attributes) -> list[str]:
    """The names of attributes that have other values now, or have grown."""
    keys = before.keys() | after.keys()
    return sorted({name for part, name in keys if not _same(before.get((part, name)), after.get((part, name)))})


def put_back(module: nn.Module, before: Attributes) -> None:
    """Attributes as they were; what was put into lists and the like stays there."""
    after = attributes(module)
    for part, name in before.keys() | after.keys():
        if (part, name) not in before:
            del vars(part)[name]
        elif not _same(before[part, name], after.get((part, name))):
            vars(part)[name] = before[part, name][0]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Tracing runs the module on tensors without memory, which are not to stay in its attributes."""
    before = {(part, name): value for part in module.modules() for name, value in vars(part).items()}
    try:
        yield
    finally:
        for part in module.modules():
            for name, value in list(vars(part).items()):
                known = before.get((part, name), _NOTHING)
                if known is _NOTHING:
                    del vars(part)[name]
                elif known is not value:
                    vars(part)[name] = known


def _hooks(part: nn.Module) -> list[Any]:
    return [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]


def _same(one: tuple[Any, Any] | None, other: tuple[Any, Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[1] == other[1] and (one[0] is other[0] or _equal_values(one[0], other[0]))


def _equal_values(one: Any, other: Any) -> bool:
    return isinstance(one, (int, float, str, bytes, Size)) and type(one) is type(other) and bool(one == other)
