// GEMMs of many tenants in one launch, through cuBLAS pointer arrays. C ABI, raw pointers, no torch headers.
//
//   y[r] = x[r] @ W[slot[r]]^T        x[r]: M x K, W[s]: N x K (torch's nn.Linear layout), y[r]: M x N, all row-major
//
// Who a row belongs to is read on the device (slot, num_active), so a captured graph serves any mix of tenants: a small
// kernel turns the table into pointer arrays, cublasGemmBatchedEx does the rest. Idle rows multiply into a scratch block,
// because the batch count of a captured launch is fixed.
//
// cuBLAS is opened on first use and cudart is linked statically: the library loads on machines without a GPU, without a
// driver and without cuBLAS, and says what is missing when it is called. Every function returns 0 or a code; st_error()
// then names the call that failed. Handles are not thread-safe, like those of cuBLAS.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <mutex>

#include "cublas_abi.h"

namespace {

constexpr int kInvalidArgument = 1;
constexpr int kCublasMissing = 2;
constexpr int kCudaError = 1000;    // + cudaError_t
constexpr int kCublasError = 2000;  // + cublasStatus_t
constexpr int kMaxGroups = 1024;

thread_local char error_text[512] = "";

int Fail(int code, const char* call, const char* reason) {
  std::snprintf(error_text, sizeof(error_text), "%s: %s (code %d)", call, reason, code);
  return code;
}

int CheckCuda(cudaError_t status, const char* call) {
  return status == cudaSuccess ? 0 : Fail(kCudaError + static_cast<int>(status), call, cudaGetErrorString(status));
}

// ---------------------------------------------------------------------------------------------- cuBLAS, opened late

struct Blas {
  void* library = nullptr;
  cublas::Create create = nullptr;
  cublas::Destroy destroy = nullptr;
  cublas::GetVersion get_version = nullptr;
  cublas::SetStream set_stream = nullptr;
  cublas::SetWorkspace set_workspace = nullptr;
  cublas::SetSmCountTarget set_sm_count_target = nullptr;
  cublas::GetStatusString get_status_string = nullptr;
  cublas::GemmBatchedEx gemm_batched = nullptr;
  cublas::GemmGroupedBatchedEx gemm_grouped = nullptr;
};

Blas blas;
std::mutex blas_mutex;

template <class Function>
bool Find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(blas.library, name));
  return function != nullptr;
}

const char* FirstMissing() {
  if (!Find(blas.create, "cublasCreate_v2")) return "cublasCreate_v2";
  if (!Find(blas.destroy, "cublasDestroy_v2")) return "cublasDestroy_v2";
  if (!Find(blas.get_version, "cublasGetVersion_v2")) return "cublasGetVersion_v2";
  if (!Find(blas.set_stream, "cublasSetStream_v2")) return "cublasSetStream_v2";
  if (!Find(blas.set_workspace, "cublasSetWorkspace_v2")) return "cublasSetWorkspace_v2";
  if (!Find(blas.set_sm_count_target, "cublasSetSmCountTarget")) return "cublasSetSmCountTarget";
  if (!Find(blas.get_status_string, "cublasGetStatusString")) return "cublasGetStatusString";
  if (!Find(blas.gemm_batched, "cublasGemmBatchedEx")) return "cublasGemmBatchedEx";
  Find(blas.gemm_grouped, "cublasGemmGroupedBatchedEx");  // since cuBLAS 12.5; checked where it is used
  return nullptr;
}

int OpenBlas(const char* path) {
  const std::lock_guard<std::mutex> lock(blas_mutex);
  if (blas.library != nullptr) return 0;
  const char* names[] = {path, "libcublas.so.13", "libcublas.so.12", "libcublas.so"};
  for (const char* name : names) {
    if (name == nullptr || name[0] == '\0') continue;
    blas.library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (blas.library != nullptr) break;
  }
  if (blas.library == nullptr) return Fail(kCublasMissing, "dlopen(libcublas)", dlerror());
  if (const char* missing = FirstMissing()) {
    dlclose(blas.library);
    blas = Blas{};
    return Fail(kCublasMissing, missing, "this cuBLAS does not have it");
  }
  return 0;
}

int CheckBlas(cublas::Status status, const char* call) {
  return status == cublas::kSuccess ? 0 : Fail(kCublasError + status, call, blas.get_status_string(status));
}

// ------------------------------------------------------------------------------------------------------- precisions

struct Precision {
  cudaDataType type;
  int compute;
  int64_t itemsize;
};

// The order is that of spacetime/kernels/batched_gemm.py.
bool FindPrecision(int code, Precision& precision) {
  switch (code) {
    case 0: precision = {CUDA_R_32F, cublas::kCompute32FPedantic, 4}; return true;  // fp32, every bit
    case 1: precision = {CUDA_R_32F, cublas::kCompute32FFastTF32, 4}; return true;  // fp32 rounded to TF32
    case 2: precision = {CUDA_R_16BF, cublas::kCompute32F, 2}; return true;
    case 3: precision = {CUDA_R_16F, cublas::kCompute32F, 2}; return true;
    default: return false;
  }
}

// ---------------------------------------------------------------------------------------------------- the slot table

struct Block {
  char* base;
  int64_t stride;  // bytes from one row (or slot) to the next
};

__global__ void FillPointers(const int32_t* __restrict__ slot, const int32_t* __restrict__ num_active, int capacity,
                             Block weight, Block x, Block y, char* scratch, void** __restrict__ pointers) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= capacity) return;
  const int owner = row < *num_active ? slot[row] : -1;
  const bool idle = owner < 0;
  pointers[row] = weight.base + (idle ? 0 : owner) * weight.stride;
  pointers[capacity + row] = x.base + row * x.stride;
  pointers[2 * capacity + row] = idle ? scratch : y.base + row * y.stride;
}

}  // namespace

extern "C" {

const char* st_error() { return error_text; }

int st_cuda_device_count(int* count) { return CheckCuda(cudaGetDeviceCount(count), "cudaGetDeviceCount"); }

// Open cuBLAS; `path` may be null, then the usual names are tried. Called by the others as needed.
int st_blas_open(const char* path) { return OpenBlas(path); }

int st_blas_create(void** handle) {
  if (handle == nullptr) return Fail(kInvalidArgument, "st_blas_create", "handle is null");
  if (const int code = OpenBlas(nullptr)) return code;
  int count = 0;
  if (const int code = st_cuda_device_count(&count)) return code;
  return CheckBlas(blas.create(handle), "cublasCreate");
}

int st_blas_destroy(void* handle) { return handle == nullptr ? 0 : CheckBlas(blas.destroy(handle), "cublasDestroy"); }

int st_blas_version(void* handle, int* version) {
  return CheckBlas(blas.get_version(handle, version), "cublasGetVersion");
}

// Run on this stream, with this workspace, as if the device had `num_units` SMs (0: all of them). In this order: setting
// the stream resets the workspace.
int st_blas_bind(void* handle, void* stream, void* workspace, int64_t workspace_bytes, int num_units) {
  if (handle == nullptr || workspace_bytes < 0 || num_units < 0) {
    return Fail(kInvalidArgument, "st_blas_bind", "handle is null, or a size is negative");
  }
  if (const int code = CheckBlas(blas.set_stream(handle, static_cast<cudaStream_t>(stream)), "cublasSetStream")) {
    return code;
  }
  const size_t bytes = static_cast<size_t>(workspace_bytes);
  if (const int code = CheckBlas(blas.set_workspace(handle, workspace, bytes), "cublasSetWorkspace")) return code;
  return CheckBlas(blas.set_sm_count_target(handle, num_units), "cublasSetSmCountTarget");
}

// Fill `pointers` (3 * capacity device pointers: weights, x, y) from the slot table. Strides are in bytes.
int st_slot_pointers(void* stream, const int32_t* slot, const int32_t* num_active, int capacity, void* weight,
                     int64_t weight_stride, void* x, int64_t x_stride, void* y, int64_t y_stride, void* scratch,
                     void** pointers) {
  if (capacity < 1) return Fail(kInvalidArgument, "st_slot_pointers", "capacity must be positive");
  constexpr int kThreads = 64;
  FillPointers<<<(capacity + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      slot, num_active, capacity, {static_cast<char*>(weight), weight_stride}, {static_cast<char*>(x), x_stride},
      {static_cast<char*>(y), y_stride}, static_cast<char*>(scratch), pointers);
  return CheckCuda(cudaGetLastError(), "st_slot_pointers");
}

// y[r] = x[r] @ W[slot[r]]^T for the pointers that st_slot_pointers filled, on the handle's stream. cuBLAS is
// column-major: the row-major product is Y^T (N x M) = op(W) (N x K) times X^T (K x M).
int st_batched_gemm(void* handle, int precision_code, int capacity, int m, int n, int k, void** pointers) {
  Precision precision;
  if (!FindPrecision(precision_code, precision)) {
    return Fail(kInvalidArgument, "st_batched_gemm", "precision must be 0 (fp32), 1 (tf32), 2 (bf16) or 3 (fp16)");
  }
  if (handle == nullptr || capacity < 1 || m < 1 || n < 1 || k < 1) {
    return Fail(kInvalidArgument, "st_batched_gemm", "handle is null, or a size is not positive");
  }
  const float one = 1.0f;
  const float zero = 0.0f;
  return CheckBlas(blas.gemm_batched(handle, cublas::kOpT, cublas::kOpN, n, m, k, &one, pointers, precision.type, k,
                                     pointers + capacity, precision.type, k, &zero, pointers + 2 * capacity,
                                     precision.type, n, capacity, precision.compute, cublas::kGemmDefault),
                   "cublasGemmBatchedEx");
}

// The same for groups of different shapes in one launch: group g has group_size[g] products of m[g], n[g], k[g]. Shapes
// are host arrays (cuBLAS freezes them in a captured graph); w, x, y are device arrays of device pointers, group by group.
int st_grouped_gemm(void* handle, int precision_code, int num_groups, const int* m, const int* n, const int* k,
                    const int* group_size, const void* const* w, const void* const* x, void* const* y) {
  Precision precision;
  if (!FindPrecision(precision_code, precision)) {
    return Fail(kInvalidArgument, "st_grouped_gemm", "precision must be 0 (fp32), 1 (tf32), 2 (bf16) or 3 (fp16)");
  }
  if (handle == nullptr || num_groups < 1 || num_groups > kMaxGroups) {
    return Fail(kInvalidArgument, "st_grouped_gemm", "handle is null, or not 1 to 1024 groups");
  }
  if (blas.gemm_grouped == nullptr) {
    return Fail(kCublasMissing, "cublasGemmGroupedBatchedEx", "needs cuBLAS 12.5 or newer");
  }
  int transposed[kMaxGroups];
  int plain[kMaxGroups];
  float one[kMaxGroups];
  float zero[kMaxGroups];
  for (int group = 0; group < num_groups; ++group) {
    transposed[group] = cublas::kOpT;
    plain[group] = cublas::kOpN;
    one[group] = 1.0f;
    zero[group] = 0.0f;
  }
  return CheckBlas(blas.gemm_grouped(handle, transposed, plain, n, m, k, one, w, precision.type, k, x, precision.type, k,
                                     zero, y, precision.type, n, num_groups, group_size, precision.compute),
                   "cublasGemmGroupedBatchedEx");
}

}  // extern "C"
