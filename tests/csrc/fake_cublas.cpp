// A cuBLAS that computes nothing and remembers how it was called, for tests on machines without a GPU.
#include <cstdint>
#include <cstdio>
#include <string>

static std::string calls;
static int next_status = 0;

static int Note(const std::string& text) {
  calls += text + "\n";
  const int status = next_status;
  next_status = 0;
  return status;
}

static std::string Numbers(const int* values, int count) {
  std::string text = "[";
  for (int index = 0; index < count; ++index) text += (index ? " " : "") + std::to_string(values[index]);
  return text + "]";
}

extern "C" {
const char* fake_calls() { return calls.c_str(); }
void fake_reset() { calls.clear(); }
void fake_fail_next(int status) { next_status = status; }

int cublasCreate_v2(void** handle) {
  *handle = &calls;
  return Note("create");
}
int cublasDestroy_v2(void*) { return Note("destroy"); }
int cublasGetVersion_v2(void*, int* version) {
  *version = 130000;
  return Note("version");
}
int cublasSetStream_v2(void*, void* stream) { return Note("stream " + std::to_string(reinterpret_cast<intptr_t>(stream))); }
int cublasSetWorkspace_v2(void*, void* workspace, size_t bytes) {
  return Note("workspace " + std::to_string(reinterpret_cast<intptr_t>(workspace)) + " " + std::to_string(bytes));
}
int cublasSetSmCountTarget(void*, int units) { return Note("units " + std::to_string(units)); }
const char* cublasGetStatusString(int) { return "CUBLAS_STATUS_FAKE"; }

int cublasGemmBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* const a[], int type_a,
                        int lda, const void* const b[], int type_b, int ldb, const void* beta, void* const c[], int type_c,
                        int ldc, int count, int compute, int algorithm) {
  char text[256];
  const long offset_b = static_cast<long>(b - a);
  const long offset_c = static_cast<long>(const_cast<const void* const*>(c) - a);
  std::snprintf(text, sizeof(text), "batched ops %d%d mnk %d %d %d types %d %d %d ld %d %d %d at %ld %ld x%d compute %d algo %d %g %g",
                op_a, op_b, m, n, k, type_a, type_b, type_c, lda, ldb, ldc, offset_b, offset_c, count, compute, algorithm,
                *static_cast<const float*>(alpha), *static_cast<const float*>(beta));
  return Note(text);
}

int cublasGemmGroupedBatchedEx(void*, const int op_a[], const int op_b[], const int m[], const int n[], const int k[],
                               const void* alpha, const void* const*, int type, const int lda[], const void* const*, int,
                               const int ldb[], const void* beta, void* const*, int, const int ldc[], int groups,
                               const int sizes[], int compute) {
  const float last_alpha = static_cast<const float*>(alpha)[groups - 1];
  const float last_beta = static_cast<const float*>(beta)[groups - 1];
  return Note("grouped ops " + Numbers(op_a, groups) + Numbers(op_b, groups) + " m" + Numbers(m, groups) + " n" +
              Numbers(n, groups) + " k" + Numbers(k, groups) + " ld" + Numbers(lda, groups) + Numbers(ldb, groups) +
              Numbers(ldc, groups) + " sizes" + Numbers(sizes, groups) + " type " + std::to_string(type) + " compute " +
              std::to_string(compute) + " " + std::to_string(static_cast<int>(last_alpha)) +
              std::to_string(static_cast<int>(last_beta)));
}
}
