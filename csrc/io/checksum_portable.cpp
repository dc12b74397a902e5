// CRC32C by tables, eight bytes a step ("slicing by 8"): the meaning of the checksum, against which the backends
// with special instructions are tested.
#include <array>
#include <cstdint>

#include "io/checksum_backends.h"
#include "io/checksum_polynomial.h"

namespace memsys {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b] is the state that byte b leaves after k more zero bytes.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (auto& table : tables) {
      for (int bit = 0; bit < 8; ++bit) state = crc::times_x(state);
      table[byte] = state;
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

// Byte by byte, so that the order of bytes in this machine's words does not matter.
uint32_t load_little_endian(const uint8_t* data) {
  return static_cast<uint32_t>(data[0]) | static_cast<uint32_t>(data[1]) << 8 | static_cast<uint32_t>(data[2]) << 16 |
         static_cast<uint32_t>(data[3]) << 24;
}

uint32_t advance(uint32_t state, const uint8_t* data, int64_t bytes) {
  for (; bytes >= 8; bytes -= 8, data += 8) {
    const uint32_t low = state ^ load_little_endian(data);
    const uint32_t high = load_little_endian(data + 4);
    state = kTables[7][low & 255] ^ kTables[6][(low >> 8) & 255] ^ kTables[5][(low >> 16) & 255] ^
            kTables[4][low >> 24] ^ kTables[3][high & 255] ^ kTables[2][(high >> 8) & 255] ^
            kTables[1][(high >> 16) & 255] ^ kTables[0][high >> 24];
  }
  for (; bytes > 0; --bytes, ++data) state = (state >> 8) ^ kTables[0][(state ^ *data) & 255];
  return state;
}

bool is_supported() { return true; }

}  // namespace

const ChecksumBackend& portable_checksum() {
  static constexpr ChecksumBackend backend{"portable", is_supported, advance};
  return backend;
}

}  // namespace memsys
