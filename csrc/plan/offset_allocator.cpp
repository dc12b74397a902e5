// See offset_allocator.h. Three ordered indexes over the same ranges: live by offset, free by offset (to find
// neighbours), free by size (to find the best fit). Every operation touches each a constant number of times.
#include "plan/offset_allocator.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {
namespace {

void expect_invariant(bool holds, const char* what) {
  MEMSYS_EXPECT(holds, Error, std::string("offset allocator: broken invariant: ") + what);
}

void expect_capacity(int64_t capacity, int64_t alignment) {
  MEMSYS_EXPECT(capacity >= 0 && capacity % alignment == 0, InputError,
                "offset allocator: capacity " + std::to_string(capacity) + " is not a multiple of the alignment " +
                    std::to_string(alignment) + "; round it with align_down()");
}

}  // namespace

OffsetAllocator::OffsetAllocator(int64_t capacity, int64_t alignment) : capacity_(0), alignment_(alignment) {
  MEMSYS_EXPECT(alignment > 0 && (alignment & (alignment - 1)) == 0, InputError,
                "offset allocator: alignment " + std::to_string(alignment) + " is not a power of two");
  expect_capacity(capacity, alignment);
  grow(capacity);
}

int64_t OffsetAllocator::allocate(int64_t bytes) {
  MEMSYS_EXPECT(bytes > 0, InputError,
                "offset allocator: asked for " + std::to_string(bytes) + " bytes; ask for at least one");
  if (bytes > capacity_) return -1;  // before rounding, which could overflow
  const int64_t rounded = align_up(bytes, alignment_);
  // Pairs order by size, then by offset: the first that fits is the lowest among the smallest.
  const auto best = free_by_size_.lower_bound({rounded, 0});
  if (best == free_by_size_.end()) return -1;
  const auto [free_bytes, offset] = *best;
  live_.emplace(offset, rounded);
  erase_free(offset, free_bytes);
  if (free_bytes > rounded) insert_free(offset + rounded, free_bytes - rounded);
  used_bytes_ += rounded;
  high_water_ = std::max(high_water_, offset + rounded);
  return offset;
}

void OffsetAllocator::free(int64_t offset) {
  const auto found = live_.find(offset);
  MEMSYS_EXPECT(found != live_.end(), InputError,
                "offset allocator: no live range starts at offset " + std::to_string(offset) +
                    "; it was freed before, or never handed out");
  int64_t begin = offset, end = offset + found->second;
  used_bytes_ -= found->second;
  live_.erase(found);
  const auto after = free_by_offset_.lower_bound(begin);
  if (after != free_by_offset_.begin()) {
    const auto [before_offset, before_bytes] = *std::prev(after);
    if (before_offset + before_bytes == begin) {
      begin = before_offset;
      erase_free(before_offset, before_bytes);
    }
  }
  if (after != free_by_offset_.end() && after->first == end) {
    const auto [after_offset, after_bytes] = *after;
    end += after_bytes;
    erase_free(after_offset, after_bytes);
  }
  insert_free(begin, end - begin);
}

void OffsetAllocator::grow(int64_t capacity) {
  expect_capacity(capacity, alignment_);
  MEMSYS_EXPECT(capacity >= capacity_, InputError,
                "offset allocator: cannot shrink from " + std::to_string(capacity_) + " to " +
                    std::to_string(capacity) + " bytes; make a new one");
  if (capacity == capacity_) return;
  int64_t begin = capacity_;
  if (!free_by_offset_.empty()) {
    const auto [last_offset, last_bytes] = *free_by_offset_.rbegin();
    if (last_offset + last_bytes == capacity_) {
      begin = last_offset;
      erase_free(last_offset, last_bytes);
    }
  }
  insert_free(begin, capacity - begin);
  capacity_ = capacity;
}

int64_t OffsetAllocator::size_of(int64_t offset) const {
  const auto found = live_.find(offset);
  MEMSYS_EXPECT(found != live_.end(), InputError,
                "offset allocator: no live range starts at offset " + std::to_string(offset));
  return found->second;
}

int64_t OffsetAllocator::largest_free_bytes() const {
  return free_by_size_.empty() ? 0 : free_by_size_.rbegin()->first;
}

int64_t OffsetAllocator::tail_bytes() const {
  if (free_by_offset_.empty()) return 0;
  const auto [offset, bytes] = *free_by_offset_.rbegin();
  return offset + bytes == capacity_ ? bytes : 0;
}

void OffsetAllocator::check_invariants() const {
  expect_invariant(free_by_offset_.size() == free_by_size_.size(), "the free indexes differ in length");
  int64_t position = 0, used = 0;
  auto live = live_.begin();
  auto free = free_by_offset_.begin();
  bool was_free = false;
  while (live != live_.end() || free != free_by_offset_.end()) {
    const bool is_free = live == live_.end() || (free != free_by_offset_.end() && free->first < live->first);
    const auto [offset, bytes] = is_free ? *free : *live;
    expect_invariant(offset == position, "ranges overlap or leave a gap");
    expect_invariant(bytes > 0 && bytes % alignment_ == 0, "a range is empty or not aligned");
    if (is_free) {
      expect_invariant(!was_free, "two free neighbours are not merged");
      expect_invariant(free_by_size_.count({bytes, offset}) == 1, "a free range is missing from the size index");
      ++free;
    } else {
      expect_invariant(offset + bytes <= high_water_, "a live range ends above the high water mark");
      used += bytes;
      ++live;
    }
    was_free = is_free;
    position = offset + bytes;
  }
  expect_invariant(position == capacity_, "ranges do not end at the capacity");
  expect_invariant(used == used_bytes_, "used bytes are miscounted");
}

void OffsetAllocator::insert_free(int64_t offset, int64_t bytes) {
  free_by_offset_.emplace(offset, bytes);
  free_by_size_.emplace(bytes, offset);
}

void OffsetAllocator::erase_free(int64_t offset, int64_t bytes) {
  free_by_offset_.erase(offset);
  free_by_size_.erase({bytes, offset});
}

}  // namespace memsys
