// The offset allocator against a brute-force reference that keeps one bit per alignment unit: same offset for every
// request, nothing overlaps, nothing is lost.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "plan/offset_allocator.h"

using memsys::InputError;
using memsys::OffsetAllocator;

namespace {

constexpr int64_t kUnit = 64;

// Slow and obvious: the state is the bitmap, each answer a scan of it.
class BitmapReference {
 public:
  explicit BitmapReference(int64_t unit_count) : taken_(static_cast<size_t>(unit_count), false) {}

  int64_t allocate(int64_t bytes) {
    const int64_t wanted = (bytes + kUnit - 1) / kUnit;
    int64_t best = -1, best_count = std::numeric_limits<int64_t>::max();
    scan([&](int64_t begin, int64_t count) {
      if (count >= wanted && count < best_count) best = begin, best_count = count;
    });
    if (best < 0) return -1;
    mark(best, wanted, true);
    return best * kUnit;
  }
  void free(int64_t offset, int64_t bytes) { mark(offset / kUnit, (bytes + kUnit - 1) / kUnit, false); }
  void grow(int64_t unit_count) { taken_.resize(static_cast<size_t>(unit_count), false); }
  int64_t unit_count() const { return static_cast<int64_t>(taken_.size()); }
  int64_t used_bytes() const {
    int64_t count = 0;
    for (const bool bit : taken_) count += bit ? 1 : 0;
    return count * kUnit;
  }
  int64_t largest_free_bytes() const {
    int64_t largest = 0;
    scan([&](int64_t, int64_t count) { largest = std::max(largest, count); });
    return largest * kUnit;
  }

 private:
  template <class Visit>
  void scan(const Visit& visit) const {
    int64_t begin = 0;
    for (int64_t unit = 0; unit <= unit_count(); ++unit) {
      if (unit < unit_count() && !taken_[static_cast<size_t>(unit)]) continue;
      if (unit > begin) visit(begin, unit - begin);
      begin = unit + 1;
    }
  }
  void mark(int64_t begin, int64_t count, bool value) {
    for (int64_t unit = begin; unit < begin + count; ++unit) {
      CHECK(taken_[static_cast<size_t>(unit)] != value);  // an overlap, or a double free
      taken_[static_cast<size_t>(unit)] = value;
    }
  }
  std::vector<bool> taken_;
};

// One seeded run: allocate, free and now and then grow, comparing every answer.
void run_fuzz(uint64_t seed, int64_t step_count) {
  std::mt19937_64 random(seed);
  const auto below = [&](int64_t bound) { return static_cast<int64_t>(random() % static_cast<uint64_t>(bound)); };
  BitmapReference reference(128);
  OffsetAllocator allocator(128 * kUnit, kUnit);
  std::map<int64_t, int64_t> live;
  int64_t refused_count = 0;
  for (int64_t step = 0; step < step_count; ++step) {
    const bool wants_more = below(100) < (step / 500 % 2 == 0 ? 60 : 40);  // fills up, then empties, in waves
    if (wants_more || live.empty()) {
      const int64_t bytes = 1 + below(below(8) == 0 ? 40 * kUnit : 4 * kUnit);
      const int64_t offset = allocator.allocate(bytes);
      CHECK_EQUAL(offset, reference.allocate(bytes));
      if (offset >= 0) live.emplace(offset, bytes);
      refused_count += offset < 0 ? 1 : 0;
    } else {
      const auto victim = std::next(live.begin(), below(static_cast<int64_t>(live.size())));
      CHECK_EQUAL(allocator.size_of(victim->first), (victim->second + kUnit - 1) / kUnit * kUnit);
      allocator.free(victim->first);
      reference.free(victim->first, victim->second);
      live.erase(victim);
    }
    if (below(2000) == 0 && reference.unit_count() < 512) {
      reference.grow(reference.unit_count() + 16);
      allocator.grow(reference.unit_count() * kUnit);
    }
    CHECK_EQUAL(allocator.live_count(), static_cast<int64_t>(live.size()));
    if (step < 4000 || step % 97 == 0) {
      allocator.check_invariants();
      CHECK_EQUAL(allocator.used_bytes(), reference.used_bytes());
      CHECK_EQUAL(allocator.largest_free_bytes(), reference.largest_free_bytes());
    }
  }
  CHECK(refused_count > 0);  // else the run never met a full allocator
  for (const auto& [offset, bytes] : live) allocator.free(offset);
  allocator.check_invariants();
  CHECK_EQUAL(allocator.largest_free_bytes(), allocator.capacity());  // all merged again: nothing lost
}

}  // namespace

TEST(offset_allocator_agrees_with_bitmap_over_100k_steps) {
  for (const uint64_t seed : {1u, 7u, 42u, 20240607u}) {
    std::printf("     seed %llu\n", static_cast<unsigned long long>(seed));
    run_fuzz(seed, 100'000);
  }
}

TEST(offset_allocator_takes_the_lowest_of_the_smallest_that_fit) {
  OffsetAllocator allocator(32 * kUnit, kUnit);
  const int64_t big = allocator.allocate(4 * kUnit), wall = allocator.allocate(kUnit);
  const int64_t small = allocator.allocate(2 * kUnit), wall2 = allocator.allocate(kUnit);
  const int64_t small2 = allocator.allocate(2 * kUnit), wall3 = allocator.allocate(kUnit);
  CHECK(wall >= 0 && wall2 >= 0 && wall3 >= 0);
  allocator.free(big);
  allocator.free(small2);
  allocator.free(small);
  CHECK_EQUAL(allocator.allocate(2 * kUnit), small);
  CHECK_EQUAL(allocator.allocate(kUnit + 1), small2);
  CHECK_EQUAL(allocator.allocate(3 * kUnit), big);
  allocator.check_invariants();
}

TEST(offset_allocator_merges_with_both_neighbours_at_once) {
  OffsetAllocator allocator(3 * kUnit, kUnit);
  const int64_t left = allocator.allocate(1), middle = allocator.allocate(1), right = allocator.allocate(1);
  CHECK_EQUAL(allocator.allocate(1), int64_t{-1});
  allocator.free(left);
  allocator.free(right);
  CHECK_EQUAL(allocator.largest_free_bytes(), kUnit);
  allocator.free(middle);
  CHECK_EQUAL(allocator.largest_free_bytes(), 3 * kUnit);
  CHECK_EQUAL(allocator.used_bytes(), int64_t{0});
  CHECK_EQUAL(allocator.high_water(), 3 * kUnit);
}

TEST(offset_allocator_keeps_live_ranges_when_it_grows) {
  OffsetAllocator allocator(0, kUnit);
  CHECK_EQUAL(allocator.allocate(1), int64_t{-1});
  allocator.grow(2 * kUnit);
  const int64_t kept = allocator.allocate(kUnit);
  allocator.grow(8 * kUnit);
  allocator.check_invariants();
  CHECK_EQUAL(allocator.size_of(kept), kUnit);
  CHECK_EQUAL(allocator.allocate(7 * kUnit), kUnit);  // the new room merged with the free end of the old
  allocator.grow(9 * kUnit);                          // and with no free end to merge with
  CHECK_EQUAL(allocator.allocate(kUnit), 8 * kUnit);
  allocator.check_invariants();
}

TEST(offset_allocator_refuses_nonsense) {
  CHECK_THROWS(OffsetAllocator(128, 48), InputError);
  CHECK_THROWS(OffsetAllocator(100, kUnit), InputError);
  CHECK_THROWS(OffsetAllocator(-kUnit, kUnit), InputError);
  OffsetAllocator allocator(4 * kUnit, kUnit);
  CHECK_THROWS(allocator.allocate(0), InputError);
  CHECK_THROWS(allocator.allocate(-1), InputError);
  CHECK_THROWS(allocator.free(0), InputError);
  CHECK_THROWS(allocator.size_of(0), InputError);
  CHECK_THROWS(allocator.grow(kUnit), InputError);
  const int64_t offset = allocator.allocate(1);
  CHECK_THROWS(allocator.free(offset + 1), InputError);
  allocator.free(offset);
  CHECK_THROWS(allocator.free(offset), InputError);
  CHECK_EQUAL(allocator.allocate(std::numeric_limits<int64_t>::max()), int64_t{-1});
  allocator.check_invariants();
}
