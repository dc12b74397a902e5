// Rows through 256-bit registers. There are no masked byte stores, so a tail is a register that ends with the row and
// overlaps the one before it.
#include "kernels/row_copy.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define MEMSYS_ISA __attribute__((target("avx2")))
#include "kernels/row_copy_loop.h"

namespace memsys {
namespace {

constexpr int64_t kVectorBytes = 32;

MEMSYS_ISA MEMSYS_INLINE __m256i load(const char* source) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
}
MEMSYS_ISA MEMSYS_INLINE void store(char* target, __m256i vector) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), vector);
}

struct Registers {
  static constexpr bool can_stream = true;
  int64_t row_bytes;

  MEMSYS_ISA MEMSYS_INLINE void copy(char* target, const char* source) const { copy_bytes(target, source, row_bytes); }
  MEMSYS_ISA MEMSYS_INLINE void copy_bytes(char* target, const char* source, int64_t bytes) const {
    if (bytes < kVectorBytes) {
      std::memcpy(target, source, static_cast<size_t>(bytes));
      return;
    }
    int64_t at = 0;
    for (; at + 4 * kVectorBytes <= bytes; at += 4 * kVectorBytes) {
      const __m256i first = load(source + at), second = load(source + at + kVectorBytes);
      const __m256i third = load(source + at + 2 * kVectorBytes), fourth = load(source + at + 3 * kVectorBytes);
      store(target + at, first);
      store(target + at + kVectorBytes, second);
      store(target + at + 2 * kVectorBytes, third);
      store(target + at + 3 * kVectorBytes, fourth);
    }
    for (; at + kVectorBytes <= bytes; at += kVectorBytes) store(target + at, load(source + at));
    if (at < bytes) store(target + bytes - kVectorBytes, load(source + bytes - kVectorBytes));
  }
  MEMSYS_ISA MEMSYS_INLINE void copy_line(char* target, const char* source) const {
    const __m256i first = load(source), second = load(source + kVectorBytes);
    store(target, first);
    store(target + kVectorBytes, second);
  }
  MEMSYS_ISA MEMSYS_INLINE void stream_lines(char* target, const char* source, int64_t bytes) const {
    for (int64_t at = 0; at < bytes; at += kVectorBytes)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + at), load(source + at));
  }
};

MEMSYS_ISA void gather(const RowCopy& copy, int64_t begin, int64_t end) {
  gather_rows(copy, begin, end, Registers{copy.row_bytes});
  _mm_sfence();  // streamed bytes are seen by others only after it
}

}  // namespace

const RowCopyBackend& avx2_row_copy() {
  static const RowCopyBackend backend{"avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, gather, find_bad};
  return backend;
}

}  // namespace memsys

#else

namespace memsys {

const RowCopyBackend& avx2_row_copy() {
  static const RowCopyBackend backend{"avx2", [] { return false; }, nullptr, nullptr};
  return backend;
}

}  // namespace memsys

#endif
