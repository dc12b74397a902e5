// Arithmetic on byte counts: alignment, checked addition and multiplication, and sizes as people read them.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace memsys {

inline constexpr int64_t kKiB = int64_t{1} << 10;
inline constexpr int64_t kMiB = int64_t{1} << 20;
inline constexpr int64_t kGiB = int64_t{1} << 30;

// `alignment` must be a power of two.
constexpr int64_t align_down(int64_t value, int64_t alignment) { return value & ~(alignment - 1); }
constexpr int64_t align_up(int64_t value, int64_t alignment) { return align_down(value + alignment - 1, alignment); }

inline int64_t checked_add(int64_t left, int64_t right) {
  int64_t sum = 0;
  MEMSYS_EXPECT(!__builtin_add_overflow(left, right, &sum), InputError, "byte count overflows 64 bits");
  return sum;
}

inline int64_t checked_multiply(int64_t left, int64_t right) {
  int64_t product = 0;
  MEMSYS_EXPECT(!__builtin_mul_overflow(left, right, &product), InputError, "byte count overflows 64 bits");
  return product;
}

// "1.50 GiB", "12.0 KiB", "17 bytes".
std::string format_bytes(int64_t bytes);

}  // namespace memsys
