// What the memory tests share: an upstream that counts what it has out, and blocks that carry patterns at both ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "memory/memory_resource.h"

namespace memory_test {

// Counts the bytes that are really out, from any thread, and keeps the peak.
class CountingResource : public memsys::MemoryResource {
 public:
  explicit CountingResource(std::shared_ptr<memsys::MemoryResource> upstream) : upstream_(std::move(upstream)) {}
  void* allocate(int64_t bytes) override {
    const int64_t now = current_ += bytes;
    for (int64_t seen = peak_; now > seen && !peak_.compare_exchange_weak(seen, now);) continue;
    try {
      return upstream_->allocate(bytes);
    } catch (...) {
      current_ -= bytes;
      throw;
    }
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override {
    upstream_->deallocate(pointer, bytes);
    current_ -= bytes;
  }
  memsys::Tier tier() const override { return upstream_->tier(); }
  int64_t current_bytes() const { return current_; }
  int64_t peak_bytes() const { return peak_; }

 private:
  std::shared_ptr<memsys::MemoryResource> upstream_;
  std::atomic<int64_t> current_{0}, peak_{0};
};

struct Block {
  char* pointer = nullptr;
  int64_t bytes = 0;
  uint64_t tag = 0;
};

inline char pattern_at(const Block& block, int64_t index) {
  return static_cast<char>(block.tag * 31 + static_cast<uint64_t>(index) * 7 + 1);
}

// Visits the first and the last 64 bytes of a block (all of a shorter one).
template <class Visit>
void for_each_edge_byte(const Block& block, const Visit& visit) {
  constexpr int64_t kEdgeBytes = 64;
  for (int64_t index = 0; index < block.bytes; ++index) {
    if (index == kEdgeBytes && block.bytes > 2 * kEdgeBytes) index = block.bytes - kEdgeBytes;
    visit(index);
  }
}

// Writes a pattern of the block's own at both of its ends: an overlap with another block breaks one of the two.
inline void mark(const Block& block) {
  for_each_edge_byte(block, [&](int64_t index) { block.pointer[index] = pattern_at(block, index); });
}

inline bool is_intact(const Block& block) {
  bool intact = true;
  for_each_edge_byte(block,
                     [&](int64_t index) { intact = intact && block.pointer[index] == pattern_at(block, index); });
  return intact;
}

}  // namespace memory_test
