// The part of HIP that cu_mask_hip.cpp calls, written down here so that the build needs no ROCm. tests/csrc compares the
// declarations with the real headers where those are installed.
#pragma once

#include <cstdint>

namespace hip {

using Error = int;
using Stream = void*;

constexpr Error kSuccess = 0;

using GetErrorString = const char* (*)(Error);
using GetDeviceCount = Error (*)(int*);
using SetDevice = Error (*)(int);
using StreamCreateWithCUMask = Error (*)(Stream*, uint32_t, const uint32_t*);
using StreamGetCUMask = Error (*)(Stream, uint32_t, uint32_t*);
using StreamDestroy = Error (*)(Stream);

}  // namespace hip
