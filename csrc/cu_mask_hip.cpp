// Streams that run on chosen compute units of an AMD GPU. C ABI, raw pointers, no torch headers, no link to ROCm.
//
// libamdhip64 is opened on first use: the library loads on any machine and says what is missing when it is called. Every
// function returns 0 or a code; st_hip_error() then names the call that failed. Which bit of a mask is which compute unit
// is the caller's business (spacetime/backends/hip.py); an empty mask is refused here, because it hangs the queue.

#include <dlfcn.h>

#include <cstdio>
#include <mutex>

#include "hip_abi.h"

namespace {

constexpr int kInvalidArgument = 1;
constexpr int kHipMissing = 2;
constexpr int kHipError = 1000;  // + hipError_t

thread_local char error_text[512] = "";

int Fail(int code, const char* call, const char* reason) {
  std::snprintf(error_text, sizeof(error_text), "%s: %s (code %d)", call, reason, code);
  return code;
}

struct Runtime {
  void* library = nullptr;
  hip::GetErrorString get_error_string = nullptr;
  hip::GetDeviceCount get_device_count = nullptr;
  hip::SetDevice set_device = nullptr;
  hip::StreamCreateWithCUMask create = nullptr;
  hip::StreamGetCUMask get_mask = nullptr;
  hip::StreamDestroy destroy = nullptr;
};

Runtime runtime;
std::mutex runtime_mutex;

template <class Function>
bool Find(Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(runtime.library, name));
  return function != nullptr;
}

const char* FirstMissing() {
  if (!Find(runtime.get_error_string, "hipGetErrorString")) return "hipGetErrorString";
  if (!Find(runtime.get_device_count, "hipGetDeviceCount")) return "hipGetDeviceCount";
  if (!Find(runtime.set_device, "hipSetDevice")) return "hipSetDevice";
  if (!Find(runtime.create, "hipExtStreamCreateWithCUMask")) return "hipExtStreamCreateWithCUMask";
  if (!Find(runtime.get_mask, "hipExtStreamGetCUMask")) return "hipExtStreamGetCUMask";
  if (!Find(runtime.destroy, "hipStreamDestroy")) return "hipStreamDestroy";
  return nullptr;
}

int Open(const char* path) {
  const std::lock_guard<std::mutex> lock(runtime_mutex);
  if (runtime.library != nullptr) return 0;
  const char* names[] = {path, "libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"};
  for (const char* name : names) {
    if (name == nullptr || name[0] == '\0') continue;
    runtime.library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (runtime.library != nullptr) break;
  }
  if (runtime.library == nullptr) return Fail(kHipMissing, "dlopen(libamdhip64)", dlerror());
  if (const char* missing = FirstMissing()) {
    dlclose(runtime.library);
    runtime = Runtime{};
    return Fail(kHipMissing, missing, "this libamdhip64 does not have it");
  }
  return 0;
}

int Check(hip::Error error, const char* call) {
  return error == hip::kSuccess ? 0 : Fail(kHipError + error, call, runtime.get_error_string(error));
}

bool IsEmpty(const uint32_t* mask, int num_words) {
  for (int word = 0; word < num_words; ++word) {
    if (mask[word] != 0) return false;
  }
  return true;
}

}  // namespace

extern "C" {

const char* st_hip_error() { return error_text; }

// Open HIP; `path` may be null, then the usual names are tried. Called by the others as needed.
int st_hip_open(const char* path) { return Open(path); }

int st_hip_device_count(int* count) {
  if (const int code = Open(nullptr)) return code;
  return Check(runtime.get_device_count(count), "hipGetDeviceCount");
}

// A stream whose kernels run on the compute units of the mask only; bit i of word j is bit 32 * j + i.
int st_hip_stream_create(int device, const uint32_t* mask, int num_words, void** stream) {
  if (mask == nullptr || stream == nullptr || num_words < 1) {
    return Fail(kInvalidArgument, "st_hip_stream_create", "mask or stream is null, or the mask has no words");
  }
  if (IsEmpty(mask, num_words)) {
    return Fail(kInvalidArgument, "st_hip_stream_create", "the mask is empty; it would hang the queue");
  }
  if (const int code = Open(nullptr)) return code;
  if (const int code = Check(runtime.set_device(device), "hipSetDevice")) return code;
  return Check(runtime.create(stream, static_cast<uint32_t>(num_words), mask), "hipExtStreamCreateWithCUMask");
}

// The mask in force, read back from the driver.
int st_hip_stream_mask(void* stream, uint32_t* mask, int num_words) {
  if (mask == nullptr || num_words < 1) {
    return Fail(kInvalidArgument, "st_hip_stream_mask", "mask is null, or has no words");
  }
  if (const int code = Open(nullptr)) return code;
  return Check(runtime.get_mask(stream, static_cast<uint32_t>(num_words), mask), "hipExtStreamGetCUMask");
}

int st_hip_stream_destroy(void* stream) {
  if (stream == nullptr) return 0;
  if (const int code = Open(nullptr)) return code;
  return Check(runtime.destroy(stream), "hipStreamDestroy");
}

}  // extern "C"
