"""Every kernel compiles for GPUs that are not here, to the code it was written for. Triton checks none of this itself.

No spills; tensor cores, on Hopper by wgmma; no more shared memory than one program may have; tiles fetched 16 bytes
at a time. Compilations are kept in Triton's own cache, so the second run is quick.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")

from spacetime.kernels.triton import launch, slot_conv2d, slot_linear
from spacetime.kernels.triton.launch import ITEM_BYTES, Launch
from tests.kernels.triton.compiled_cases import CORE, MORE, Case
from tests.kernels.triton.offline import TARGETS, Binary, compile_for
from tests.slow import mostly

SOURCES = Path(launch.__file__).parent / "sources"


def complaints(case: Case, made: Launch, binary: Binary, target: str) -> list[str]:
    """What is wrong with the machine code of a case."""
    is_hip = TARGETS[target].kind == "hip"
    copies = binary.count(r"cp\.async\.cg\.shared\.global .*0x10")
    wanted = 0 if is_hip or not case.is_wide else wide_copies(case, made)
    found = [
        (binary.spilled > 0, f"spills {binary.spilled}"),
        (binary.shared_bytes > TARGETS[target].shared_bytes, f"{binary.shared_bytes} bytes of shared memory"),
        (case.on_tensor_cores and not binary.has_tensor_cores, "no tensor cores"),
        (case.on_tensor_cores and target == "sm_90" and not binary.has_wgmma, "no wgmma"),
        (copies < wanted, f"{copies} copies of 16 bytes, {wanted} wanted: an alignment is lost"),
        (case.is_wide and binary.wide_loads == 0, "no load of 16 bytes"),
    ]
    return [facts for is_wrong, facts in found if is_wrong]


def wide_copies(case: Case, made: Launch) -> int:
    """Asynchronous copies of 16 bytes that one thread makes for the tiles of all stages, where a tile has as many."""
    sizes = made.constants
    if "BLOCK_K" not in sizes:
        return 0
    layer = getattr(case.shape, "layers", [case.shape])[0]
    per_copy = 16 // ITEM_BYTES[layer.dtype] * 32 * made.num_warps
    return sum(sizes[name] * sizes["BLOCK_K"] // per_copy for name in ("BLOCK_M", "BLOCK_N")) * made.num_stages


def check(case: Case, target: str) -> None:
    made = case.launch(TARGETS[target])
    found = complaints(case, made, compile_for(made, TARGETS[target]), target)
    assert not found, f"{made} for {target}: {found}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CORE)
def test_a_kernel_compiles_to_what_it_was_written_for(name: str, target: str) -> None:
    check(CORE[name], target)


BY_ADDRESS = ("linear bf16 m=1", "linear bf16 m=128", "gemv fp32 m=1", "conv 3x3 bf16", "embedding bf16")


@pytest.mark.parametrize("target", mostly(TARGETS, slow=[name for name in TARGETS if name != "sm_90"]))
@pytest.mark.parametrize("name", BY_ADDRESS)
def test_weights_that_are_found_by_address_cost_nothing(name: str, target: str) -> None:
    """Those that several programs share, see kernels/bound/owners.py: no alignment is lost on the way."""
    case, device = CORE[name], TARGETS[target]
    by_entry = case.launch(device)
    places = torch.empty(by_entry.arguments["w_entry"].numel(), dtype=torch.int64, device="meta")
    by_address = replace(by_entry, arguments={**by_entry.arguments, "w_entry": places})
    found, own = (compile_for(each, device) for each in (by_address, by_entry))
    assert not complaints(case, by_address, found, target)
    wanted = (own.wide_loads, own.has_wgmma, own.shared_bytes)
    assert (found.wide_loads, found.has_wgmma, found.shared_bytes) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MORE)
def test_other_shapes_do_too(name: str, target: str) -> None:
    check(MORE[name], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("name", CORE)
def test_candidates_of_tuning_fit_into_shared_memory(name: str, target: str) -> None:
    """A sample of them, first and last; whether they are fast, or spill, is for the measurement to say."""
    case, device = CORE[name], TARGETS[target]
    configs = list(case.kernel.candidates(case.shape, device))
    assert configs, "there is nothing to tune"
    for config in islice(configs, 0, None, max(1, len(configs) // 3)):
        binary = compile_for(case.launch(device, config), device)
        assert binary.shared_bytes <= device.shared_bytes, config


def altered(kernel: str, old: str, new: str, folder: Path) -> ModuleType:
    text = (SOURCES / f"{kernel}.py").read_text(encoding="utf-8")
    assert old in text
    path = folder / f"altered_{kernel}.py"
    path.write_text(text.replace(old, new), encoding="utf-8")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_lost_alignment_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = altered("slot_conv2d", "tl.multiple_of(k % C, BLOCK_K)", "k % C", tmp_path)
    monkeypatch.setattr("tests.kernels.triton.offline.source", lambda _: module.slot_conv2d_kernel)
    case = CORE["conv 3x3 bf16"]
    made = case.launch(TARGETS["sm_90"])
    found = complaints(case, made, compile_for(made, TARGETS["sm_90"]), "sm_90")
    assert any("alignment" in each for each in found)


def test_too_much_shared_memory_spills_and_missing_tensor_cores_are_noticed() -> None:
    case, device = CORE["linear bf16 m=128"], TARGETS["sm_80"]
    made = case.launch(device, slot_linear.Config(128, 128, 128, False, 1, 4, 4))
    found = complaints(case, made, compile_for(made, device), "sm_80")
    assert any("shared memory" in each for each in found) and any("spills" in each for each in found)
    exact = replace(CORE["linear fp32"], on_tensor_cores=True)
    made = exact.launch(device)
    assert complaints(exact, made, compile_for(made, device), "sm_80") == ["no tensor cores"]


def test_defaults_leave_stages_out_where_memory_is_small() -> None:
    shape = MORE["conv 3x3 512 bf16"].shape
    stages = {name: slot_conv2d.default(shape, target).num_stages for name, target in TARGETS.items()}
    assert stages["gfx942"] < stages["sm_90"]
