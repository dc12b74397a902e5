// CRC32C (Castagnoli) of bytes, by the fastest instructions this CPU has, with a portable path that gives the same.
#pragma once

#include <cstdint>
#include <string>

namespace memsys {

// Continues from `seed`: crc32c(b, m, crc32c(a, n)) is the checksum of a followed by b.
uint32_t crc32c(const void* data, int64_t bytes, uint32_t seed = 0);
uint32_t crc32c_portable(const void* data, int64_t bytes, uint32_t seed = 0);
// "vpclmulqdq", "sse4.2", "arm-crc", "portable": what crc32c() uses here.
std::string crc32c_implementation();

}  // namespace memsys
