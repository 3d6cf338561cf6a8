// The part of cuBLAS that batched_gemm.cu calls, written down here so that the build needs no cuBLAS headers.
// The values are those of the public API (cublas_api.h, library_types.h), which cuBLAS keeps stable across versions;
// tests/csrc/test_cublas_abi.py compares them with the real headers where those are installed.
#pragma once

#include <cuda_runtime.h>
#include <library_types.h>

#include <cstddef>

namespace cublas {

using Handle = void*;
using Status = int;

constexpr Status kSuccess = 0;
constexpr int kOpN = 0;
constexpr int kOpT = 1;
constexpr int kGemmDefault = -1;
constexpr int kCompute32F = 68;
constexpr int kCompute32FPedantic = 69;
constexpr int kCompute32FFastTF32 = 77;

using Create = Status (*)(Handle*);
using Destroy = Status (*)(Handle);
using GetVersion = Status (*)(Handle, int*);
using SetStream = Status (*)(Handle, cudaStream_t);
using SetWorkspace = Status (*)(Handle, void*, size_t);
using SetSmCountTarget = Status (*)(Handle, int);
using GetStatusString = const char* (*)(Status);
using GemmBatchedEx = Status (*)(Handle, int, int, int, int, int, const void*, const void* const[], cudaDataType, int,
                                 const void* const[], cudaDataType, int, const void*, void* const[], cudaDataType, int,
                                 int, int, int);
using GemmGroupedBatchedEx = Status (*)(Handle, const int[], const int[], const int[], const int[], const int[],
                                        const void*, const void* const[], cudaDataType, const int[],
                                        const void* const[], cudaDataType, const int[], const void*, void* const[],
                                        cudaDataType, const int[], int, const int[], int);

}  // namespace cublas
