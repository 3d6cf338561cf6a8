"""What a config depends on: the capabilities of the device that a kernel is compiled for. No triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Target(Value):
    name: str  # as the driver says it; measurements are kept by it
    kind: str  # "cuda" | "hip"
    arch: str  # "90", "gfx942"
    num_units: int
    shared_bytes: int  # that one program may use

    @property
    def has_tf32(self) -> bool:
        """Tensor cores that take rounded fp32; elsewhere such products are done exactly."""
        return self.kind == "cuda" and int(self.arch) >= 80

    @classmethod
    def of(cls, device: torch.device) -> Target:
        """Asks the driver; call it once per device, not on the hot path."""
        found = torch.cuda.get_device_properties(device)
        if torch.version.hip:
            arch = found.gcnArchName.partition(":")[0]
            shared_bytes = found.shared_memory_per_block
            return cls(found.name, "hip", arch, found.multi_processor_count, shared_bytes)
        shared_bytes = int(getattr(found, "shared_memory_per_block_optin"))  # noqa: B009 - torch's stubs lack it
        return cls(found.name, "cuda", f"{found.major}{found.minor}", found.multi_processor_count, shared_bytes)
