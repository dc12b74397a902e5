// The ways to compute CRC32C, one per file, so that the tests can hold each against the portable one. A backend
// for another architecture is still listed, as one that is not supported here.
#pragma once

#include <cstdint>
#include <span>

namespace memsys {

struct ChecksumBackend {
  const char* name;
  bool (*is_supported)();
  // Advances the raw state (already inverted) over `bytes` >= 0 bytes; call only where is_supported().
  uint32_t (*advance)(uint32_t state, const uint8_t* data, int64_t bytes);
};

const ChecksumBackend& vpclmul_checksum();
const ChecksumBackend& sse42_checksum();
const ChecksumBackend& arm_checksum();
const ChecksumBackend& portable_checksum();

// All of them, fastest first; the last, portable, is always supported.
std::span<const ChecksumBackend> checksum_backends();

}  // namespace memsys
