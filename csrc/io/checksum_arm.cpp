// CRC32C by the crc32c instructions of ARMv8, which take several cycles but can start one each cycle: three
// neighbouring blocks are advanced side by side and then joined.
#include "io/checksum_backends.h"

#if defined(__aarch64__) && defined(__linux__)

#include <arm_acle.h>
#include <sys/auxv.h>

#include <cstring>

#include "io/checksum_polynomial.h"

namespace memsys {
namespace {

constexpr unsigned long kHasCrc32 = 1UL << 7;  // HWCAP_CRC32 of the kernel's <asm/hwcap.h>
constexpr int64_t kBlockBytes = 1024;
constexpr crc::ZeroBytes kBlock(kBlockBytes);

uint64_t load(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

__attribute__((target("+crc"))) uint32_t advance_three(uint32_t state, const uint8_t* data) {
  uint32_t first = state, second = 0, third = 0;
  for (int64_t at = 0; at < kBlockBytes; at += 8) {
    first = __crc32cd(first, load(data + at));
    second = __crc32cd(second, load(data + kBlockBytes + at));
    third = __crc32cd(third, load(data + 2 * kBlockBytes + at));
  }
  return kBlock.append_to(kBlock.append_to(first) ^ second) ^ third;
}

__attribute__((target("+crc"))) uint32_t advance(uint32_t state, const uint8_t* data, int64_t bytes) {
  for (; bytes >= 3 * kBlockBytes; bytes -= 3 * kBlockBytes, data += 3 * kBlockBytes)
    state = advance_three(state, data);
  for (; bytes >= 8; bytes -= 8, data += 8) state = __crc32cd(state, load(data));
  for (; bytes > 0; --bytes, ++data) state = __crc32cb(state, *data);
  return state;
}

bool is_supported() { return (getauxval(AT_HWCAP) & kHasCrc32) != 0; }

}  // namespace

const ChecksumBackend& arm_checksum() {
  static constexpr ChecksumBackend backend{"arm-crc", is_supported, advance};
  return backend;
}

}  // namespace memsys

#else  // another architecture has no such instruction

namespace memsys {

const ChecksumBackend& arm_checksum() {
  static constexpr ChecksumBackend backend{"arm-crc", +[] { return false; }, nullptr};
  return backend;
}

}  // namespace memsys

#endif
