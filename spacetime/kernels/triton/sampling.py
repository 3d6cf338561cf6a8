"""Random operands for tuning and tests: all rows active, row r uses entry r % slots, outputs poisoned with NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from spacetime.kernels.triton.launch import DTYPES, Slotted


class Sampler:
    """Draws on the device itself; on "meta" it only makes shapes."""

    def __init__(self, device: str, dtype: str, rows: int, slots: int, seed: int) -> None:
        self.device = device
        self.dtype = DTYPES[dtype]
        self.slots = slots
        self.entries = (torch.arange(rows, dtype=torch.int32) % slots).to(device)
        self.num_active = torch.tensor([rows], dtype=torch.int32, device=device)
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def random(self, *size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(size, generator=self._generator, device=self.device)
        return (values * scale).to(self.dtype)

    def slotted(self, *size: int, scale: float = 1.0) -> Slotted:
        return Slotted(self.random(self.slots, *size, scale=scale), self.entries)

    def blank(self, *size: int) -> Tensor:
        return torch.full(size, float("nan"), dtype=self.dtype, device=self.device)

    def words(self, number: int) -> Tensor:
        """int32 zeros."""
        return torch.zeros(number, dtype=torch.int32, device=self.device)

    def indices(self, high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=self._generator, device=self.device)
