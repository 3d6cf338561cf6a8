"""The calls of the CUDA backend against the libraries that are installed: names, arguments, what comes back.

Without a GPU no call does anything, but the bindings convert arguments before they look for a driver, so a call with
one argument too many or of the wrong type fails here and not on the first machine that has a GPU. What is not installed
(cuda.bindings, cupy), or not built in (torch for CPUs), is left out.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest
import torch

from spacetime.backends.cuda import driver as ours
from spacetime.backends.cuda.driver import CudaDriver, DriverError
from spacetime.backends.cuda.gpu import Event, _end_allocations

BUILT_FOR_CUDA = torch.version.cuda is not None


class NoDevice:
    """`cuda.bindings.driver` whose calls are checked by the real ones, and then answered as a driver would."""

    def __init__(self, real: ModuleType) -> None:
        self.real = real
        self.called: list[str] = []
        group = real.CUdevResource()
        nothing = real.CUdevResource()
        group.type = real.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        group.sm.smCount = 8
        self.answers: dict[str, tuple[Any, ...]] = {
            "cuInit": (),
            "cuDriverGetVersion": (13_000,),
            "cuDeviceGet": (real.CUdevice(0),),
            "cuDeviceGetDevResource": (group,),
            "cuDevSmResourceSplitByCount": ([group, group], 2, nothing),
            "cuDevResourceGenerateDesc": (real.CUdevResourceDesc(),),
            "cuGreenCtxCreate": (real.CUgreenCtx(),),
            "cuGreenCtxGetDevResource": (group,),
            "cuGreenCtxDestroy": (),
            "cuGreenCtxStreamCreate": (real.CUstream(4096),),
            "cuStreamDestroy": (),
        }

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not name.startswith("cu"):
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.called.append(name)
            signature = re.match(rf"{name}\((.*)\)", (found.__doc__ or "").splitlines()[0])
            assert signature is not None, f"{name} does not tell its arguments"
            depth = re.sub(r"\[[^]]*\]", "", signature[1])  # what stands between brackets is a type
            assert len(arguments) == len(depth.split(",") if depth else ()), f"{name}({signature[1]})"
            with pytest.raises(RuntimeError):  # for want of a driver, and no TypeError before
                found(*arguments)
            return (self.real.CUresult.CUDA_SUCCESS, *self.answers[name])

        return call


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> NoDevice:
    real = pytest.importorskip("cuda.bindings.driver")
    try:
        real.cuInit(0)
        pytest.skip("there is a CUDA driver: the calls are made by `make device`")
    except RuntimeError:
        stand_in = NoDevice(real)
    monkeypatch.setattr("cuda.bindings.driver", stand_in)
    return stand_in


def test_every_call_of_the_driver_is_one_that_the_bindings_take(checked: NoDevice) -> None:
    driver = CudaDriver()
    resource = driver.sm_resource(0)
    assert driver.num_units(resource) == 8
    split = driver.split(resource, 8)
    assert [driver.num_units(group) for group in split.groups] == [8, 8] and split.remainder is None
    context = driver.create_context(0, split.groups)
    assert driver.context_units(context) == 8
    stream = driver.create_stream(context, 0)
    assert stream == 4096
    driver.destroy_stream(stream)
    driver.destroy_context(context)
    assert set(checked.called) == set(checked.answers), "every call is made here"


def test_a_remainder_is_one_only_where_the_driver_says_that_it_is_of_sms(checked: NoDevice) -> None:
    driver = CudaDriver()
    resource = driver.sm_resource(0)
    rest = checked.real.CUdevResource()  # its type is INVALID, whatever else is in its memory
    rest.sm.smCount = 4
    checked.answers["cuDevSmResourceSplitByCount"] = ([resource], 1, rest)
    assert driver.split(resource, 8).remainder is None
    rest.type = checked.real.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    found = driver.split(resource, 8).remainder
    assert found is not None and driver.num_units(found) == 4


def test_flags_are_those_of_the_bindings(checked: NoDevice) -> None:
    real = checked.real
    assert int(real.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM) == ours._DEFAULT_STREAM
    assert int(real.CUstream_flags.CU_STREAM_NON_BLOCKING) == ours._NON_BLOCKING
    assert int(real.CUresult.CUDA_SUCCESS) == 0


def test_a_machine_without_a_driver_is_told_so() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    try:
        real.cuInit(0)
    except RuntimeError:
        with pytest.raises(DriverError, match="there is no CUDA driver") as caught:
            CudaDriver()
        assert re.search("libcuda|driver", caught.value.facts)
    else:
        pytest.skip("there is one")


# -- torch -------------------------------------------------------------------------------------------------


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_torch_takes_the_arguments_that_are_passed_by_name() -> None:
    assert {"pool", "capture_error_mode"} <= parameters(torch.cuda.CUDAGraph.capture_begin)
    assert {"stream_ptr", "device"} <= parameters(torch.cuda.ExternalStream.__new__)
    assert {"blocking", "enable_timing"} <= parameters(torch.cuda.Event.__new__)
    assert "device" in parameters(torch.cuda.Stream.__new__)
    for name in ("graph_pool_handle", "memory_snapshot", "mem_get_info", "current_stream", "default_stream", "_sleep"):
        assert callable(getattr(torch.cuda, name))
    for name in ("mem_get_info", "memory_reserved", "memory_allocated", "current_stream", "default_stream"):
        assert "device" in parameters(getattr(torch.cuda, name))
    assert isinstance(torch.cuda.default_generators, tuple)
    assert {"clone_state", "graphsafe_get_state", "graphsafe_set_state"} <= set(dir(torch.Generator))
    events = {name for name in vars(Event) if not name.startswith("_")}
    assert events <= set(dir(torch.cuda.Event)) and events >= {"record", "wait", "query", "synchronize"}


@pytest.mark.skipif(not BUILT_FOR_CUDA, reason="torch is built for CPUs")
def test_torch_has_what_only_its_cuda_build_has() -> None:
    properties: Any = torch._C._CudaDeviceProperties
    for name in (
        *("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size"),
        *("clock_rate", "memory_clock_rate", "memory_bus_width", "shared_memory_per_block_optin"),
    ):
        assert hasattr(properties, name), name
    end = (torch._C._cuda_endAllocateToPool.__doc__ or "").splitlines()[0]
    assert end.count("arg") == 2 and "tuple" in end, end
    assert isinstance(tuple(torch.cuda.graph_pool_handle()), tuple)
    assert {"replay", "pool", "capture_begin", "capture_end"} <= set(dir(torch._C._CUDAGraph))


@pytest.mark.skipif(not BUILT_FOR_CUDA, reason="torch is built for CPUs")
def test_a_capture_that_has_ended_is_ended_once() -> None:
    """torch's own answer, without a GPU: an error, which must not hide why the capture failed."""
    _end_allocations(0, torch.cuda.graph_pool_handle())


def test_cupy_has_what_the_census_needs() -> None:
    cupy: Any = pytest.importorskip("cupy")
    assert callable(cupy.RawKernel) and callable(cupy.ndarray) and cupy.uint32
    for name in ("UnownedMemory", "MemoryPointer", "Device", "ExternalStream"):
        assert callable(getattr(cupy.cuda, name))
