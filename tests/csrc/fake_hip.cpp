// A libamdhip64 with one GPU that computes nothing and remembers the masks it was given, for tests.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

static std::string calls;
static std::map<void*, std::vector<uint32_t>> masks;
static intptr_t created = 0;

extern "C" {
const char* fake_calls() { return calls.c_str(); }
void fake_reset() {
  calls.clear();
  masks.clear();
}
const char* hipGetErrorString(int) { return "hipErrorFake"; }
int hipGetDeviceCount(int* count) {
  *count = 1;
  return 0;
}
int hipSetDevice(int device) { return device == 0 ? 0 : 101; }
int hipExtStreamCreateWithCUMask(void** stream, uint32_t words, const uint32_t* mask) {
  *stream = reinterpret_cast<void*>(++created);
  masks[*stream] = std::vector<uint32_t>(mask, mask + words);
  calls += "create " + std::to_string(created);
  for (uint32_t word = 0; word < words; ++word) calls += " " + std::to_string(mask[word]);
  calls += "\n";
  return 0;
}
int hipExtStreamGetCUMask(void* stream, uint32_t words, uint32_t* mask) {
  const std::vector<uint32_t>& known = masks[stream];
  if (words < known.size()) return 1;
  for (uint32_t word = 0; word < words; ++word) mask[word] = word < known.size() ? known[word] : 0;
  return 0;
}
int hipStreamDestroy(void* stream) {
  calls += "destroy " + std::to_string(reinterpret_cast<intptr_t>(stream)) + "\n";
  return masks.erase(stream) ? 0 : 400;
}
}
