// Rows through 512-bit registers; the tail of a row is one masked load and store, so no width has a slow loop.
#include "kernels/row_copy.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define MEMSYS_ISA __attribute__((target("avx512f,avx512bw,avx512vl")))
#include "kernels/row_copy_loop.h"

namespace memsys {
namespace {

constexpr int64_t kVectorBytes = 64;

// The low `bytes` of a register's bytes; fewer than all of them.
__mmask64 mask_of(int64_t bytes) { return (__mmask64{1} << bytes) - 1; }

template <StorePath path>
MEMSYS_ISA MEMSYS_INLINE void store(char* target, __m512i vector) {
  if constexpr (path == StorePath::streaming) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), vector);
  } else {
    _mm512_storeu_si512(target, vector);
  }
}

struct Registers {
  int64_t row_bytes;
  int64_t whole_bytes;  // of a row's whole registers
  __mmask64 tail;

  template <StorePath path>
  MEMSYS_ISA MEMSYS_INLINE void copy(char* target, const char* source) const {
    if (row_bytes <= 32) return copy_narrow(target, source);
    int64_t at = 0;
    for (; at + 4 * kVectorBytes <= whole_bytes; at += 4 * kVectorBytes) {
      const __m512i first = _mm512_loadu_si512(source + at), second = _mm512_loadu_si512(source + at + kVectorBytes);
      const __m512i third = _mm512_loadu_si512(source + at + 2 * kVectorBytes);
      const __m512i fourth = _mm512_loadu_si512(source + at + 3 * kVectorBytes);
      store<path>(target + at, first);
      store<path>(target + at + kVectorBytes, second);
      store<path>(target + at + 2 * kVectorBytes, third);
      store<path>(target + at + 3 * kVectorBytes, fourth);
    }
    for (; at < whole_bytes; at += kVectorBytes) store<path>(target + at, _mm512_loadu_si512(source + at));
    if (tail == 0) return;
    // Past the first register the last one overlaps it: a masked one takes longer, over lines' ends most of all.
    const int64_t last = row_bytes - kVectorBytes;
    if (last > 0) return _mm512_storeu_si512(target + last, _mm512_loadu_si512(source + last));
    const int64_t last_half = row_bytes - kVectorBytes / 2;
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + last_half));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + last_half), high);
  }

 private:
  // A wide store, though masked, would cross into the next line.
  MEMSYS_ISA MEMSYS_INLINE void copy_narrow(char* target, const char* source) const {
    if (row_bytes <= 16) {
      const auto mask = static_cast<__mmask16>(tail);
      _mm_mask_storeu_epi8(target, mask, _mm_maskz_loadu_epi8(mask, source));
    } else {
      const auto mask = static_cast<__mmask32>(tail);
      _mm256_mask_storeu_epi8(target, mask, _mm256_maskz_loadu_epi8(mask, source));
    }
  }
};

MEMSYS_ISA void gather(const RowCopy& copy, int64_t begin, int64_t end) {
  const int64_t whole_bytes = copy.row_bytes / kVectorBytes * kVectorBytes;
  const Registers registers{copy.row_bytes, whole_bytes, mask_of(copy.row_bytes - whole_bytes)};
  if (copy.store_path == StorePath::cached || !is_line_aligned(copy))
    return gather_rows<StorePath::cached>(copy, begin, end, registers);
  gather_rows<StorePath::streaming>(copy, begin, end, registers);
  _mm_sfence();  // streamed bytes are seen by others only after it
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

const RowCopyBackend& avx512_row_copy() {
  static const RowCopyBackend backend{"avx512", is_supported, gather, find_bad};
  return backend;
}

}  // namespace memsys

#else

namespace memsys {

const RowCopyBackend& avx512_row_copy() {
  static const RowCopyBackend backend{"avx512", [] { return false; }, nullptr, nullptr};
  return backend;
}

}  // namespace memsys

#endif
