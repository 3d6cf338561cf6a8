"""csrc/batched_gemm.cu without a GPU: it builds, loads, says what is missing, and calls cuBLAS as it should."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_int, c_void_p
from importlib.util import find_spec
from pathlib import Path

import pytest

from spacetime.kernels import batched_gemm, native
from spacetime.kernels.native import Library, NativeError
from tests.csrc.building import CSRC, HERE, build, compiles

needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()), reason="no CUDA compiler"
)
GROUPED = c_int * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("native")
    native.build(made / "libspacetime_cuda.so", architectures=("90",))
    return made


@pytest.fixture
def library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv(native.VARIABLE, str(folder))
    return Library("spacetime_cuda", "st_error", batched_gemm._SIGNATURES)


class FakeBlas:
    """The fake that the library was told to open."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.fake_calls.restype = c_char_p
        self.fail_next: Callable[[int], None] = self._library.fake_fail_next

    def calls(self) -> list[str]:
        lines = self._library.fake_calls().decode().splitlines()
        self._library.fake_reset()
        return [str(line) for line in lines]


@pytest.fixture
def blas(library: Library, folder: Path) -> Iterator[FakeBlas]:
    path = folder / "libfake_cublas.so"
    if not path.exists():
        build(HERE / "fake_cublas.cpp", path)
    library.call("st_blas_open", str(path).encode())
    fake = FakeBlas(path)
    fake.calls()
    yield fake


HANDLE = c_void_p(1)


@needs_nvcc
def test_it_loads_and_says_what_is_missing(library: Library) -> None:
    """Both are true on a machine without a GPU; on one with a GPU both calls work."""
    count = c_int(-1)
    try:
        library.call("st_cuda_device_count", byref(count))
    except NativeError as error:
        assert "cudaGetDeviceCount" in error.facts and "code 10" in error.facts
    else:
        assert count.value >= 0


@needs_nvcc
def test_arguments_are_checked_before_anything_runs(library: Library, blas: FakeBlas) -> None:
    for arguments, problem in [
        ((HANDLE, 9, 4, 1, 1, 1, None), "precision must be"),
        ((HANDLE, 0, 4, 0, 1, 1, None), "size is not positive"),
        ((None, 0, 4, 1, 1, 1, None), "handle is null"),
    ]:
        with pytest.raises(NativeError, match=problem):
            library.call("st_batched_gemm", *arguments)
    with pytest.raises(NativeError, match="1 to 1024 groups"):
        library.call("st_grouped_gemm", HANDLE, 0, 2000, None, None, None, None, None, None, None)
    with pytest.raises(NativeError, match="size is negative"):
        library.call("st_blas_bind", HANDLE, None, None, -1, 0)
    assert blas.calls() == []


@needs_nvcc
def test_a_handle_is_bound_in_the_order_that_keeps_the_workspace(library: Library, blas: FakeBlas) -> None:
    library.call("st_blas_bind", HANDLE, c_void_p(7), c_void_p(4096), 1 << 20, 16)
    assert blas.calls() == ["stream 7", f"workspace 4096 {1 << 20}", "units 16"]


@needs_nvcc
@pytest.mark.parametrize(
    ("precision", "type_", "compute"),
    [(0, 0, 69), (1, 0, 77), (2, 14, 68), (3, 2, 68)],
    ids=["fp32", "tf32", "bf16", "fp16"],
)
def test_the_product_is_turned_around_for_column_major_blas(
    library: Library, blas: FakeBlas, precision: int, type_: int, compute: int
) -> None:
    """Y^T (N x M) = W (N x K) X^T: m and n swap, W is transposed, and every leading dimension is a row's length."""
    library.call("st_batched_gemm", HANDLE, precision, 5, 3, 20, 64, c_void_p(1 << 20))
    assert blas.calls() == [
        f"batched ops 10 mnk 20 3 64 types {type_} {type_} {type_} ld 64 64 20 at 5 10 x5 compute {compute} algo -1 1 0"
    ]


@needs_nvcc
def test_groups_of_different_shapes_go_in_one_call(library: Library, blas: FakeBlas) -> None:
    m, n, k, sizes = GROUPED(1, 4), GROUPED(20, 30), GROUPED(64, 32), GROUPED(2, 3)
    library.call("st_grouped_gemm", HANDLE, 2, 2, m, n, k, sizes, c_void_p(8), c_void_p(16), c_void_p(24))
    assert blas.calls() == [
        "grouped ops [1 1][0 0] m[20 30] n[1 4] k[64 32] ld[64 32][64 32][20 30] sizes[2 3] type 14 compute 68 10"
    ]


@needs_nvcc
def test_a_failed_call_names_itself_and_its_code(library: Library, blas: FakeBlas) -> None:
    blas.fail_next(14)
    with pytest.raises(NativeError, match=r"cublasGemmBatchedEx: CUBLAS_STATUS_FAKE \(code 2014\)"):
        library.call("st_batched_gemm", HANDLE, 0, 1, 1, 1, 1, c_void_p(8))
    blas.fail_next(7)
    with pytest.raises(NativeError, match="cublasSetStream"):
        library.call("st_blas_bind", HANDLE, None, None, 0, 0)


@needs_nvcc
def test_a_missing_blas_is_an_error_with_the_reason(folder: Path) -> None:
    """In a process of its own: the library remembers the cuBLAS that it has opened."""
    code = "\n".join(
        [
            "from spacetime.kernels.native import Library, NativeError",
            "from spacetime.kernels.batched_gemm import _SIGNATURES",
            "library = Library('spacetime_cuda', 'st_error', _SIGNATURES)",
            "try:",
            "    library.call('st_blas_open', b'/nowhere/libcublas.so')",
            "except NativeError as error:",
            "    print(error.facts)",
            "else:",
            "    print('libcublas is installed')",
        ]
    )
    environment = {native.VARIABLE: str(folder), "PATH": "/usr/bin"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "libcublas" in ended.stdout


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, str(tmp_path))
    with pytest.raises(NativeError, match=r"libspacetime_absent\.so is not installed") as caught:
        native.find("spacetime_absent")
    assert str(tmp_path) in caught.value.facts


CUBLAS_CHECKS = """
#include <cublas_v2.h>
#include "cublas_abi.h"
#include <type_traits>
static_assert(cublas::kOpN == CUBLAS_OP_N && cublas::kOpT == CUBLAS_OP_T);
static_assert(cublas::kGemmDefault == CUBLAS_GEMM_DEFAULT && cublas::kSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(cublas::kCompute32F == CUBLAS_COMPUTE_32F);
static_assert(cublas::kCompute32FPedantic == CUBLAS_COMPUTE_32F_PEDANTIC);
static_assert(cublas::kCompute32FFastTF32 == CUBLAS_COMPUTE_32F_FAST_TF32);
static_assert(sizeof(cublasHandle_t) == sizeof(cublas::Handle) && sizeof(cublasStatus_t) == sizeof(int));
template <class R, class... A> constexpr int arity(R (*)(A...)) { return sizeof...(A); }
static_assert(arity(cublas::GemmGroupedBatchedEx{}) == arity(&cublasGemmGroupedBatchedEx));
static_assert(arity(cublas::SetWorkspace{}) == arity(&cublasSetWorkspace_v2));
static_assert(arity(cublas::SetSmCountTarget{}) == arity(&cublasSetSmCountTarget));
using Batched = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
    const void* const[], cudaDataType, int, const void* const[], cudaDataType, int, const void*, void* const[],
    cudaDataType, int, int, cublasComputeType_t, cublasGemmAlgo_t);
static_assert(arity(cublas::GemmBatchedEx{}) == arity(Batched{}));
Batched real = &cublasGemmBatchedEx;
"""


def test_our_declarations_are_those_of_cublas(tmp_path: Path) -> None:
    spec = find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    headers = [path.parent for folder in folders for path in folder.rglob("cublas_v2.h")]
    cuda = [path for path in (Path("/usr/local/cuda/include"),) if (path / "cuda_runtime.h").exists()]
    if not headers or not cuda:
        pytest.skip("the headers of cuBLAS or CUDA are not installed")
    compiles(CUBLAS_CHECKS, tmp_path, *(f"-I{path}" for path in (headers[0], cuda[0], CSRC)))
