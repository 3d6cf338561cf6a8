"""The numerics contract, as code: when is a fused result equal to the plain module's? Used by runtime/ and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# max |fused - eager| <= tolerance * max |eager|
TOLERANCE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}


def tolerance_of(reference: Tensor) -> float:
    """By dtype. Where the user lets a GPU compute float32 in TF32, results have the digits of float16."""
    if reference.dtype in (torch.float32, torch.complex64) and reference.is_cuda and _computes_in_tf32():
        return TOLERANCE[torch.float16]
    return TOLERANCE.get(reference.dtype, 0.0)


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _computes_in_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32


def magnitude(reference: Any) -> float:
    """The largest finite absolute value; 0 for what is no tensor of floats, or has none."""
    if not isinstance(reference, Tensor) or not _is_inexact(reference):
        return 0.0
    finite = reference[torch.isfinite(reference)]
    return finite.abs().max().item() if finite.numel() else 0.0


def deviation(result: Tensor, reference: Tensor, scale: float = 0.0) -> float:
    """max |result - reference| / max |reference|; 0 for equal tensors, inf for different shapes, types or NaNs.

    `scale`: how large the same output is elsewhere. One logit that is nearly 0 by cancellation has lost its
    digits in the plain module too; beside the model's other answers its error shows its real size.
    """
    if result.shape != reference.shape or result.dtype != reference.dtype:
        return float("inf")
    if reference.numel() == 0 or torch.equal(result, reference):
        return 0.0
    if not _is_inexact(reference):
        return float("inf")
    finite = torch.isfinite(reference)
    same_special = result.eq(reference) | (result.isnan() & reference.isnan())
    if not bool(torch.where(finite, torch.isfinite(result), same_special).all()):
        return float("inf")
    distance = (result - reference)[finite].abs().max().item() if bool(finite.any()) else 0.0
    scale = max(scale, magnitude(reference))
    return distance / scale if scale else (float("inf") if distance else 0.0)


def problem(results: Sequence[Any], references: Sequence[Any], scales: Sequence[float] = ()) -> str | None:
    """The first output that breaks the contract, in words; None if all keep it. `scales`: see deviation()."""
    for index, (result, reference) in enumerate(zip(results, references, strict=True)):
        if not isinstance(reference, Tensor):
            if result != reference:
                return f"output {index} is {result!r}, the plain module's is {reference!r}"
            continue
        if not isinstance(result, Tensor):
            return f"output {index} is {result!r}, the plain module's is a tensor"
        if _kind(result) != _kind(reference):
            return f"output {index} is {_kind(result)}, the plain module's is {_kind(reference)}"
        tolerance = tolerance_of(reference)
        found = deviation(result, reference, scales[index] if scales else 0.0)
        if found > tolerance:
            return f"output {index} deviates by {found:.1e} of its largest value; {tolerance:.0e} is allowed"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
