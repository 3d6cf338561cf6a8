"""Compiles a launch for a GPU that is not there, and reads what came out: registers, spills, instructions.

Arguments are specialised as Triton's JIT does it: ints that are 1 become constants, multiples of 16 are known as such.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spacetime.kernels.triton.launch import Launch, source
from spacetime.kernels.triton.target import Target

TARGETS = {
    "sm_80": Target("A100", "cuda", "80", 108, 166912),
    "sm_90": Target("H200", "cuda", "90", 132, 232448),
    "sm_100": Target("B200", "cuda", "100", 148, 232448),
    "gfx942": Target("MI300X", "hip", "gfx942", 304, 65536),
}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Binary:
    """What a test may ask of compiled code."""

    assembly: str
    registers: int
    spilled: int  # bytes of stack on NVIDIA, registers on AMD
    shared_bytes: int

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.assembly))

    @property
    def has_wgmma(self) -> bool:
        return "wgmma.mma_async" in self.assembly

    @property
    def has_tensor_cores(self) -> bool:
        return self.count(r"wgmma\.mma_async|mma\.sync\.aligned\.m|tcgen05\.mma|v_mfma") > 0

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes."""
        nvidia = (
            r"cp\.async\.cg\.shared\.global .*0x10|ld\.global(?:\.[\w:]+)*\.v4\.b32|ld\.global(?:\.[\w:]+)*\.v2\.b64"
        )
        return self.count(nvidia + r"|(?:global|buffer)_load_dwordx4")


def compile_for(launch: Launch, target: Target) -> Binary:
    import triton
    from triton.backends.compiler import GPUTarget

    is_hip = target.kind == "hip"
    gpu = GPUTarget("hip", target.arch, 64) if is_hip else GPUTarget("cuda", int(target.arch), 32)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(_specialised(launch), target=gpu, options=options)
    if is_hip:
        assembly = compiled.asm["amdgcn"]
        registers, spilled = (_field(rf"\.{name}:\s+(\d+)", assembly) for name in ("vgpr_count", "vgpr_spill_count"))
    else:
        assembly = compiled.asm["ptx"]
        usage = _resource_usage(compiled.asm["cubin"])
        registers, spilled = _field(r"REG:(\d+)", usage), _field(r"STACK:(\d+)", usage)
    return Binary(assembly, registers, spilled, compiled.metadata.shared)


def _specialised(launch: Launch) -> Any:
    from triton.compiler import ASTSource

    function = source(launch.kernel)
    given = {**launch.arguments, **launch.constants}
    assert set(given) == set(function.arg_names), "a launch gives exactly what its device code takes"
    signature, constants, attributes = {}, dict(launch.constants), {}
    for number, name in enumerate(function.arg_names):
        value = given[name]
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type(value)
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(number,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _resource_usage(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _field(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in the output: {text[-500:]}"
    return int(found[1])
