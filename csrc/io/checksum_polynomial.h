// Arithmetic on polynomials over GF(2) modulo the Castagnoli polynomial, from which every backend of checksum.h
// computes its constants at compile time: a table that nobody pasted is a table that nobody pasted wrongly.
#pragma once

#include <array>
#include <cstdint>

namespace memsys::crc {

// Bits are reflected, as in CRC32C: bit 31 stands for x^0 and bit 0 for x^31. The x^32 of the polynomial is implied.
inline constexpr uint32_t kPolynomial = 0x82F63B78;
inline constexpr uint32_t kOne = 0x80000000;

constexpr uint32_t times_x(uint32_t value) { return (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0); }

constexpr uint32_t multiply(uint32_t left, uint32_t right) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((left & bit) != 0) product ^= right;
    right = times_x(right);
  }
  return product;
}

// x^exponent.
constexpr uint32_t x_power(uint64_t exponent) {
  uint32_t result = kOne;
  for (uint32_t square = times_x(kOne); exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

// What `bytes` zero bytes do to a checksum's state, as four lookups: how checksums of neighbours are joined.
class ZeroBytes {
 public:
  constexpr explicit ZeroBytes(uint64_t bytes) {
    const uint32_t factor = x_power(8 * bytes);
    for (uint32_t part = 0; part < 4; ++part)
      for (uint32_t value = 0; value < 256; ++value) table_[part][value] = multiply(value << (8 * part), factor);
  }
  constexpr uint32_t append_to(uint32_t state) const {
    return table_[0][state & 255] ^ table_[1][(state >> 8) & 255] ^ table_[2][(state >> 16) & 255] ^
           table_[3][state >> 24];
  }

 private:
  std::array<std::array<uint32_t, 256>, 4> table_{};
};

}  // namespace memsys::crc
