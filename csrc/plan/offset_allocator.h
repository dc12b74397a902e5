// Hands out half-open ranges of [0, capacity): best fit, splitting, and merging with both neighbours at once.
// Pure integers: it owns no memory, so the arena, the spill file and the address planner all use it, and it is
// fuzzed without owning a byte.
#pragma once

#include <cstdint>
#include <utility>

#include "base/small_memory.h"

namespace memsys {

class OffsetAllocator {
 public:
  // Every offset and size is a multiple of `alignment` (a power of two).
  OffsetAllocator(int64_t capacity, int64_t alignment);

  // The lowest-addressed range among the smallest that fit, or -1. `bytes` > 0.
  int64_t allocate(int64_t bytes);
  void free(int64_t offset);              // of a live range; anything else throws InputError
  void grow(int64_t capacity);            // never shrinks
  int64_t size_of(int64_t offset) const;  // of a live range, rounded

  int64_t capacity() const { return capacity_; }
  int64_t used_bytes() const { return used_bytes_; }
  int64_t live_count() const { return static_cast<int64_t>(live_.size()); }
  int64_t largest_free_bytes() const;
  int64_t tail_bytes() const;                         // of the free range that ends at the capacity; 0 if there is none
  int64_t high_water() const { return high_water_; }  // the largest end of a range ever handed out
  void check_invariants() const;                      // throws Error on any breach; for tests

 private:
  void insert_free(int64_t offset, int64_t bytes);
  void erase_free(int64_t offset, int64_t bytes);

  int64_t capacity_, alignment_, used_bytes_ = 0, high_water_ = 0;
  SmallMap<int64_t, int64_t> live_;                     // offset -> bytes
  SmallMap<int64_t, int64_t> free_by_offset_;           // offset -> bytes
  SmallSet<std::pair<int64_t, int64_t>> free_by_size_;  // (bytes, offset)
};

}  // namespace memsys
