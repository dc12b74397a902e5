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
template <StorePath path>
MEMSYS_ISA MEMSYS_INLINE void store(char* target, __m256i vector) {
  if constexpr (path == StorePath::streaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), vector);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), vector);
  }
}

struct Registers {
  int64_t row_bytes;

  template <StorePath path>
  MEMSYS_ISA MEMSYS_INLINE void copy(char* target, const char* source) const {
    if (row_bytes < kVectorBytes) {
      std::memcpy(target, source, static_cast<size_t>(row_bytes));
      return;
    }
    int64_t at = 0;
    for (; at + 4 * kVectorBytes <= row_bytes; at += 4 * kVectorBytes) {
      const __m256i first = load(source + at), second = load(source + at + kVectorBytes);
      const __m256i third = load(source + at + 2 * kVectorBytes), fourth = load(source + at + 3 * kVectorBytes);
      store<path>(target + at, first);
      store<path>(target + at + kVectorBytes, second);
      store<path>(target + at + 2 * kVectorBytes, third);
      store<path>(target + at + 3 * kVectorBytes, fourth);
    }
    for (; at + kVectorBytes <= row_bytes; at += kVectorBytes) store<path>(target + at, load(source + at));
    const int64_t last = row_bytes - kVectorBytes;
    if (at < row_bytes) store<StorePath::cached>(target + last, load(source + last));
  }
};

MEMSYS_ISA void gather(const RowCopy& copy, int64_t begin, int64_t end) {
  const Registers registers{copy.row_bytes};
  if (copy.store_path == StorePath::cached || !is_line_aligned(copy))
    return gather_rows<StorePath::cached>(copy, begin, end, registers);
  gather_rows<StorePath::streaming>(copy, begin, end, registers);
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
