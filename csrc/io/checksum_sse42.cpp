// CRC32C by the crc32 instruction of SSE4.2. It takes three cycles but starts one each cycle, so three neighbouring
// blocks are advanced side by side and then joined.
#include "io/checksum_backends.h"

#if defined(__x86_64__)

#include <nmmintrin.h>

#include <cstring>

#include "io/checksum_polynomial.h"

namespace memsys {
namespace {

constexpr int64_t kLongBytes = 2048;  // joining costs some 20 cycles, so long blocks for long data
constexpr int64_t kShortBytes = 128;
constexpr crc::ZeroBytes kLong(kLongBytes);
constexpr crc::ZeroBytes kShort(kShortBytes);

uint64_t load(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

__attribute__((target("sse4.2"))) uint32_t advance_three(uint32_t state, const uint8_t* data, int64_t block_bytes,
                                                         const crc::ZeroBytes& block) {
  uint64_t first = state, second = 0, third = 0;
  for (int64_t at = 0; at < block_bytes; at += 8) {
    first = _mm_crc32_u64(first, load(data + at));
    second = _mm_crc32_u64(second, load(data + block_bytes + at));
    third = _mm_crc32_u64(third, load(data + 2 * block_bytes + at));
  }
  const uint32_t joined = block.append_to(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
  return block.append_to(joined) ^ static_cast<uint32_t>(third);
}

__attribute__((target("sse4.2"))) uint32_t advance(uint32_t state, const uint8_t* data, int64_t bytes) {
  for (; bytes >= 3 * kLongBytes; bytes -= 3 * kLongBytes, data += 3 * kLongBytes)
    state = advance_three(state, data, kLongBytes, kLong);
  for (; bytes >= 3 * kShortBytes; bytes -= 3 * kShortBytes, data += 3 * kShortBytes)
    state = advance_three(state, data, kShortBytes, kShort);
  uint64_t wide = state;
  for (; bytes >= 8; bytes -= 8, data += 8) wide = _mm_crc32_u64(wide, load(data));
  state = static_cast<uint32_t>(wide);
  for (; bytes > 0; --bytes, ++data) state = _mm_crc32_u8(state, *data);
  return state;
}

bool is_supported() { return __builtin_cpu_supports("sse4.2") > 0; }

}  // namespace

const ChecksumBackend& sse42_checksum() {
  static constexpr ChecksumBackend backend{"sse4.2", is_supported, advance};
  return backend;
}

}  // namespace memsys

#else  // another architecture has no such instruction

namespace memsys {

const ChecksumBackend& sse42_checksum() {
  static constexpr ChecksumBackend backend{"sse4.2", +[] { return false; }, nullptr};
  return backend;
}

}  // namespace memsys

#endif
