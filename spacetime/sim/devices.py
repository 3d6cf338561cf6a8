"""Well-known devices as data. The simulator, its studies and the command line import it; no torch.

Peaks, memory, caches and power limits are the vendors' data sheets and white papers (SXM or OAM modules, without
sparsity, fp32 on vector units). What no data sheet tells is an estimate, and modelled figures depend on it: launches,
switches of partition, idle power, and what neighbours on the same units cost each other: Device's own defaults.

Hardware queues are the most that software can have. NVIDIA: 32 work queues per device, the upper end of what
CUDA_DEVICE_MAX_CONNECTIONS may be (CUDA C++ Programming Guide, environment variables; 8 unless it is set). AMD: four
asynchronous compute engines of 8 queues each (AMD's GCN white paper; HIP uses 4 unless GPU_MAX_HW_QUEUES says
otherwise). Streams beyond these share a queue, and depend on each other's kernels although nobody said so.
"""

from __future__ import annotations

from pathlib import Path

from spacetime.device import Device
from spacetime.errors import OptionError

TILES = ((128, 128), (64, 64), (32, 32))  # what GPU libraries have kernels for, about
SWITCH_US = 5.0  # an event between two streams
HARDWARE_QUEUES = 32


def _gpu(
    name: str,
    *,
    num_units: int,
    units_per_atom: int,
    num_groups: int,
    tflops: float,
    gb_per_s: float,
    memory_gb: float,
    cache_mb: float,
    launch_us: float,
    idle_watts: float,
    busy_watts: float,
) -> Device:
    return Device(
        name=name,
        kind="model",
        num_units=num_units,
        units_per_atom=units_per_atom,
        flops_per_unit_us=tflops * 1e6 / num_units,
        bytes_per_us=gb_per_s * 1e3,
        launch_us=launch_us,
        num_groups=num_groups,
        tiles=TILES,
        switch_us=SWITCH_US,
        memory_bytes=int(memory_gb * 1e9),
        cache_bytes=int(cache_mb * (1 << 20)),
        idle_watts=idle_watts,
        busy_watts=busy_watts,
        hardware_queues=HARDWARE_QUEUES,
    )


_DEVICES = (
    # NVIDIA H200 data sheet; Hopper's partitions come in eights, and 4 of the 132 SMs are in none.
    _gpu(
        "h200",
        num_units=132,
        units_per_atom=8,
        num_groups=8,
        tflops=67,
        gb_per_s=4800,
        memory_gb=141,
        cache_mb=50,
        launch_us=2.5,
        idle_watts=75,
        busy_watts=700,
    ),
    # NVIDIA A100 80 GB data sheet and Ampere white paper: 7 GPCs of 7 or 8 TPCs; an atom is a TPC, 2 SMs.
    _gpu(
        "a100",
        num_units=108,
        units_per_atom=2,
        num_groups=7,
        tflops=19.5,
        gb_per_s=2039,
        memory_gb=80,
        cache_mb=40,
        launch_us=3.0,
        idle_watts=55,
        busy_watts=400,
    ),
    # NVIDIA V100 SXM2 16 GB data sheet and Volta white paper: 6 GPCs, TPCs of 2 SMs.
    _gpu(
        "v100",
        num_units=80,
        units_per_atom=2,
        num_groups=6,
        tflops=15.7,
        gb_per_s=900,
        memory_gb=16,
        cache_mb=6,
        launch_us=5.0,
        idle_watts=40,
        busy_watts=300,
    ),
    # AMD Radeon Instinct MI50 16 GB data sheet; 4 shader engines of 15 CUs, and a mask names every CU.
    _gpu(
        "mi50",
        num_units=60,
        units_per_atom=1,
        num_groups=4,
        tflops=13.3,
        gb_per_s=1024,
        memory_gb=16,
        cache_mb=4,
        launch_us=6.0,
        idle_watts=20,
        busy_watts=300,
    ),
    # AMD Instinct MI300X data sheet and CDNA 3 white paper: 8 XCDs of 4 shader engines, 38 CUs each.
    _gpu(
        "mi300x",
        num_units=304,
        units_per_atom=1,
        num_groups=32,
        tflops=163.4,
        gb_per_s=5300,
        memory_gb=192,
        cache_mb=256,
        launch_us=5.0,
        idle_watts=140,
        busy_watts=750,
    ),
)

_BY_NAME = {device.name: device for device in _DEVICES}


def names() -> tuple[str, ...]:
    """Every device that ships."""
    return tuple(_BY_NAME)


def find(device: str | Device) -> Device:
    """A device by name, or from a `.json` file; a Device is taken as it is."""
    if isinstance(device, Device):
        return device
    if device.endswith(".json"):
        return load(device)
    if device not in _BY_NAME:
        facts = f"known: {', '.join(_BY_NAME)}"
        raise OptionError(f"device {device!r} cannot be simulated", facts, "name one, or a .json file of a Device")
    return _BY_NAME[device]


def load(path: str | Path) -> Device:
    """The device that a file describes: what Device.to_json() gives."""
    try:
        return Device.from_json(Path(path).read_text(encoding="utf-8"))
    except OptionError as error:
        raise OptionError(
            f"{path} describes no device", f"{error.what}; {error.facts}", "see Device.to_json()"
        ) from error
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as a device", str(error), "see Device.to_json()") from error
