// CRC32C by carry-less multiplication of 512-bit registers (VPCLMULQDQ): faster than memory, so that a checksum
// costs what reading the bytes costs. After Gopal et al., "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ" (Intel, 2009), widened to eight registers.
//
// A 128-bit lane holds a polynomial, bit i standing for x^(127-i): its low half L weighs x^64 more than its high
// half H. To move a lane D bits forward in the data is to multiply it by x^D, and it may be reduced modulo the
// polynomial on the way. Multiplying two 64-bit halves comes out one bit low, a factor of x, hence
//   lane * x^D = clmul(L, x^(D+63)) + clmul(H, x^(D-1)).
#include "io/checksum_backends.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "io/checksum_polynomial.h"

#define MEMSYS_VPCLMUL __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))

namespace memsys {
namespace {

constexpr int64_t kVectorBytes = 64;
constexpr int64_t kVectorCount = 8;  // enough to hide the latency of a multiplication
constexpr int64_t kStepBytes = kVectorBytes * kVectorCount;

struct FoldFactors {
  uint64_t low, high;
};

constexpr FoldFactors fold_factors(uint64_t distance_bytes) {
  const uint64_t bits = 8 * distance_bytes;
  return {uint64_t{crc::x_power(bits + 63)} << 32, uint64_t{crc::x_power(bits - 1)} << 32};
}

constexpr FoldFactors kByVector = fold_factors(kVectorBytes);
constexpr FoldFactors kByStep = fold_factors(kStepBytes);

MEMSYS_VPCLMUL inline __m512i broadcast(FoldFactors factors) {
  const auto low = static_cast<int64_t>(factors.low), high = static_cast<int64_t>(factors.high);
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

MEMSYS_VPCLMUL inline __m512i load(const uint8_t* data) { return _mm512_loadu_si512(data); }

// The processor's own prefetcher stops at the end of each page, so this asks one page ahead. Past the end of the
// data it is a hint to an address that is never read, which is why it is computed as a number.
MEMSYS_VPCLMUL inline void prefetch(const uint8_t* data) {
  constexpr uintptr_t kAheadBytes = 4096;
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(data) + kAheadBytes), _MM_HINT_T0);
}

// vector * x^D + data.
MEMSYS_VPCLMUL inline __m512i fold(__m512i vector, __m512i factors, __m512i data) {
  const __m512i low = _mm512_clmulepi64_epi128(vector, factors, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(vector, factors, 0x11);
  return _mm512_ternarylogic_epi64(low, high, data, 0x96);  // exclusive or of three
}

MEMSYS_VPCLMUL uint32_t advance_short(uint32_t state, const uint8_t* data, int64_t bytes) {
  uint64_t wide = state;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word;
    std::memcpy(&word, data, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  state = static_cast<uint32_t>(wide);
  for (; bytes > 0; --bytes, ++data) state = _mm_crc32_u8(state, *data);
  return state;
}

// `bytes` is at least kStepBytes; what is left over after whole vectors is done by the crc32 instruction.
MEMSYS_VPCLMUL uint32_t advance_long(uint32_t state, const uint8_t* data, int64_t bytes) {
  __m512i vectors[kVectorCount];
  for (int64_t index = 0; index < kVectorCount; ++index) vectors[index] = load(data + index * kVectorBytes);
  const __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
  vectors[0] = _mm512_xor_si512(vectors[0], start);
  data += kStepBytes, bytes -= kStepBytes;

  const __m512i by_step = broadcast(kByStep);
  for (; bytes >= kStepBytes; data += kStepBytes, bytes -= kStepBytes)
    for (int64_t index = 0; index < kVectorCount; ++index) {
      prefetch(data + index * kVectorBytes);
      vectors[index] = fold(vectors[index], by_step, load(data + index * kVectorBytes));
    }

  const __m512i by_vector = broadcast(kByVector);
  __m512i joined = vectors[0];
  for (int64_t index = 1; index < kVectorCount; ++index) joined = fold(joined, by_vector, vectors[index]);
  for (; bytes >= kVectorBytes; data += kVectorBytes, bytes -= kVectorBytes)
    joined = fold(joined, by_vector, load(data));

  alignas(kVectorBytes) uint8_t rest[kVectorBytes];
  _mm512_store_si512(rest, joined);
  return advance_short(advance_short(0, rest, kVectorBytes), data, bytes);
}

MEMSYS_VPCLMUL uint32_t advance(uint32_t state, const uint8_t* data, int64_t bytes) {
  // Loads that straddle two cache lines halve the speed, so start at a line.
  const auto past_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % kVectorBytes);
  const int64_t lead_bytes = std::min(bytes, (kVectorBytes - past_line) % kVectorBytes);
  if (bytes < kStepBytes + lead_bytes) return advance_short(state, data, bytes);
  state = advance_short(state, data, lead_bytes);
  return advance_long(state, data + lead_bytes, bytes - lead_bytes);
}

bool is_supported() {
  return __builtin_cpu_supports("sse4.2") > 0 && __builtin_cpu_supports("pclmul") > 0 &&
         __builtin_cpu_supports("avx512f") > 0 && __builtin_cpu_supports("avx512vl") > 0 &&
         __builtin_cpu_supports("vpclmulqdq") > 0;
}

}  // namespace

const ChecksumBackend& vpclmul_checksum() {
  static constexpr ChecksumBackend backend{"vpclmulqdq", is_supported, advance};
  return backend;
}

}  // namespace memsys

#else  // another architecture has no such instruction

namespace memsys {

const ChecksumBackend& vpclmul_checksum() {
  static constexpr ChecksumBackend backend{"vpclmulqdq", +[] { return false; }, nullptr};
  return backend;
}

}  // namespace memsys

#endif
