// Chooses the backend once, at the first checksum, by asking the CPU.
#include "io/checksum.h"

#include <array>

#include "base/error.h"
#include "io/checksum_backends.h"

namespace memsys {
namespace {

const ChecksumBackend& choose() {
  for (const ChecksumBackend& backend : checksum_backends())
    if (backend.is_supported()) return backend;
  return portable_checksum();
}

const ChecksumBackend& chosen() {
  static const ChecksumBackend& backend = choose();
  return backend;
}

uint32_t run(const ChecksumBackend& backend, const void* data, int64_t bytes, uint32_t seed) {
  MEMSYS_EXPECT(bytes >= 0, InputError,
                "crc32c of " + std::to_string(bytes) + " bytes was asked for: give a count of at least 0");
  return ~backend.advance(~seed, static_cast<const uint8_t*>(data), bytes);
}

}  // namespace

std::span<const ChecksumBackend> checksum_backends() {
  static const std::array<ChecksumBackend, 4> all{vpclmul_checksum(), sse42_checksum(), arm_checksum(),
                                                  portable_checksum()};
  return all;
}

uint32_t crc32c(const void* data, int64_t bytes, uint32_t seed) { return run(chosen(), data, bytes, seed); }

uint32_t crc32c_portable(const void* data, int64_t bytes, uint32_t seed) {
  return run(portable_checksum(), data, bytes, seed);
}

std::string crc32c_implementation() { return chosen().name; }

}  // namespace memsys
