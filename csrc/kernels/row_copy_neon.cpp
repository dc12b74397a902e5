// Rows through 128-bit registers of ARM, four at a time; a tail overlaps the register before it. There are no stores
// past the caches worth the name, so both store paths are one.
#include "kernels/row_copy.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#define MEMSYS_ISA
#include "kernels/row_copy_loop.h"

namespace memsys {
namespace {

constexpr int64_t kVectorBytes = 16;
constexpr int64_t kStepBytes = 4 * kVectorBytes;

MEMSYS_INLINE const uint8_t* bytes_at(const char* source) { return reinterpret_cast<const uint8_t*>(source); }
MEMSYS_INLINE uint8_t* bytes_at(char* target) { return reinterpret_cast<uint8_t*>(target); }

struct Registers {
  int64_t row_bytes;

  template <StorePath>
  MEMSYS_INLINE void copy(char* target, const char* source) const {
    if (row_bytes < kVectorBytes) {
      std::memcpy(target, source, static_cast<size_t>(row_bytes));
      return;
    }
    int64_t at = 0;
    for (; at + kStepBytes <= row_bytes; at += kStepBytes)
      vst1q_u8_x4(bytes_at(target + at), vld1q_u8_x4(bytes_at(source + at)));
    for (; at + kVectorBytes <= row_bytes; at += kVectorBytes)
      vst1q_u8(bytes_at(target + at), vld1q_u8(bytes_at(source + at)));
    const int64_t last = row_bytes - kVectorBytes;
    if (at < row_bytes) vst1q_u8(bytes_at(target + last), vld1q_u8(bytes_at(source + last)));
  }
};

void gather(const RowCopy& copy, int64_t begin, int64_t end) {
  gather_rows<StorePath::cached>(copy, begin, end, Registers{copy.row_bytes});
}

}  // namespace

const RowCopyBackend& neon_row_copy() {
  static const RowCopyBackend backend{"neon", [] { return true; }, gather, find_bad};
  return backend;
}

}  // namespace memsys

#else

namespace memsys {

const RowCopyBackend& neon_row_copy() {
  static const RowCopyBackend backend{"neon", [] { return false; }, nullptr, nullptr};
  return backend;
}

}  // namespace memsys

#endif
