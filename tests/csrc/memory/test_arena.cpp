// The arena over plain memory: exact sizes, merging, budget, trimming, reuse of warm blocks, and its waste.
#include <cstdio>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "csrc/check.h"
#include "csrc/memory/upstreams.h"
#include "memory/arena.h"
#include "memory/resources.h"

using namespace memsys;
using memory_test::CountingResource;

namespace {

constexpr int64_t kPage = 4096;

struct Fixture {
  explicit Fixture(ArenaOptions options)
      : upstream(std::make_shared<CountingResource>(make_mmap_resource())), arena(make_arena(upstream, options)) {}
  std::shared_ptr<CountingResource> upstream;
  std::shared_ptr<Arena> arena;
};

ArenaOptions small_slabs(int64_t budget_bytes) {
  ArenaOptions options;
  options.slab_bytes = 64 * kPage;
  options.budget_bytes = budget_bytes;
  return options;
}

}  // namespace

TEST(arena_counts_blocks_as_asked_and_slabs_as_taken) {
  Fixture fixture(small_slabs(-1));
  void* block = fixture.arena->allocate(5000);
  CHECK_EQUAL(reinterpret_cast<uintptr_t>(block) % kPage, uintptr_t{0});
  CHECK_EQUAL(fixture.arena->stats().used_bytes, int64_t{5000});
  CHECK_EQUAL(fixture.arena->stats().block_count, int64_t{1});
  CHECK_EQUAL(fixture.arena->stats().reserved_bytes, fixture.upstream->current_bytes());
  CHECK_EQUAL(fixture.arena->stats().reserved_bytes, 64 * kPage);
  fixture.arena->deallocate(block, 5000);
  fixture.arena->check_invariants();
  CHECK_EQUAL(fixture.arena->stats().used_bytes, int64_t{0});
  CHECK_EQUAL(fixture.arena->stats().peak_used_bytes, int64_t{5000});
}

TEST(arena_gives_a_large_block_a_slab_of_its_exact_size) {
  Fixture fixture(small_slabs(-1));
  void* block = fixture.arena->allocate(100 * kPage + 1);
  CHECK_EQUAL(fixture.upstream->current_bytes(), 101 * kPage);
  fixture.arena->deallocate(block, 100 * kPage + 1);
  CHECK_EQUAL(fixture.arena->trim(), 101 * kPage);
  CHECK_EQUAL(fixture.upstream->current_bytes(), int64_t{0});
}

TEST(arena_reuses_the_block_freed_last) {
  Fixture fixture(small_slabs(-1));
  void* first = fixture.arena->allocate(3 * kPage);
  void* second = fixture.arena->allocate(3 * kPage);
  fixture.arena->deallocate(first, 3 * kPage);
  fixture.arena->deallocate(second, 3 * kPage);
  CHECK(fixture.arena->allocate(3 * kPage) == second);
  CHECK(fixture.arena->allocate(3 * kPage) == first);
  fixture.arena->check_invariants();
}

TEST(arena_merges_what_is_freed) {
  Fixture fixture(small_slabs(64 * kPage));
  std::vector<void*> blocks;
  for (int index = 0; index < 64; ++index) blocks.push_back(fixture.arena->allocate(kPage));
  for (void* block : blocks) fixture.arena->deallocate(block, kPage);
  CHECK(fixture.arena->allocate(64 * kPage) == blocks.front());  // no room for another slab: all 64 merged
  fixture.arena->check_invariants();
}

TEST(arena_prefers_the_fullest_slab_so_that_others_can_be_trimmed) {
  Fixture fixture(small_slabs(-1));
  void* big[2] = {fixture.arena->allocate(60 * kPage), fixture.arena->allocate(40 * kPage)};  // slabs of their own size
  for (void* block : {fixture.arena->allocate(60 * kPage), fixture.arena->allocate(60 * kPage)})
    fixture.arena->deallocate(block, 60 * kPage);  // two empty slabs
  fixture.arena->deallocate(big[1], 40 * kPage);
  void* first = fixture.arena->allocate(10 * kPage);
  void* second = fixture.arena->allocate(10 * kPage);
  fixture.arena->check_invariants();
  CHECK_EQUAL(fixture.arena->trim(), 120 * kPage);  // both empty ones: the blocks share the fuller slab
  fixture.arena->deallocate(first, 10 * kPage);
  fixture.arena->deallocate(second, 10 * kPage);
  fixture.arena->deallocate(big[0], 60 * kPage);
  fixture.arena->check_invariants();
}

TEST(arena_flushes_free_slabs_before_it_refuses) {
  Fixture fixture(small_slabs(100 * kPage));
  fixture.arena->deallocate(fixture.arena->allocate(64 * kPage), 64 * kPage);
  CHECK(fixture.arena->try_allocate(90 * kPage) == nullptr);  // 64 of 100 are reserved, and try does not flush
  void* block = fixture.arena->allocate(90 * kPage);
  CHECK_EQUAL(fixture.upstream->current_bytes(), 90 * kPage);
  CHECK_THROWS(fixture.arena->allocate(11 * kPage), BudgetError);
  CHECK(fixture.arena->try_allocate(10 * kPage) != nullptr);  // a slab smaller than usual, where the budget ends
  CHECK_EQUAL(fixture.upstream->peak_bytes(), 100 * kPage);
  fixture.arena->deallocate(block, 90 * kPage);
  fixture.arena->check_invariants();
}

TEST(arena_says_what_was_asked_found_and_what_to_do) {
  Fixture fixture(small_slabs(10 * kPage));
  try {
    fixture.arena->allocate(11 * kPage);
  } catch (const BudgetError& error) {
    const std::string message = error.what();
    for (const char* part : {"pageable", "44.0 KiB", "40.0 KiB", "raise the budget"})
      CHECK(message.find(part) != std::string::npos);
    return;
  }
  CHECK(false);
}

TEST(arena_shrinks_to_a_lower_budget_as_blocks_return) {
  Fixture fixture(small_slabs(-1));
  void* first = fixture.arena->allocate(64 * kPage);
  void* second = fixture.arena->allocate(64 * kPage);
  fixture.arena->set_budget(64 * kPage);
  CHECK_EQUAL(fixture.upstream->current_bytes(), 128 * kPage);  // live blocks stay
  CHECK(fixture.arena->try_allocate(kPage) == nullptr);
  fixture.arena->deallocate(first, 64 * kPage);
  CHECK_EQUAL(fixture.upstream->current_bytes(), 64 * kPage);
  fixture.arena->deallocate(second, 64 * kPage);
  CHECK_EQUAL(fixture.upstream->current_bytes(), 64 * kPage);
  CHECK_EQUAL(fixture.arena->trim(64 * kPage), int64_t{0});
  CHECK_EQUAL(fixture.arena->trim(), 64 * kPage);
  fixture.arena->check_invariants();
}

TEST(arena_refuses_nonsense) {
  Fixture fixture(small_slabs(-1));
  CHECK_THROWS(fixture.arena->allocate(0), InputError);
  CHECK_THROWS(fixture.arena->try_allocate(-4), InputError);
  CHECK_THROWS(fixture.arena->allocate(INT64_MAX), InputError);
  CHECK_THROWS(fixture.arena->allocate(int64_t{1} << 60), BudgetError);
  ArenaOptions options;
  options.alignment = 3000;
  CHECK_THROWS(make_arena(fixture.upstream, options), InputError);
  options = ArenaOptions{};
  options.slab_bytes = 0;
  CHECK_THROWS(make_arena(fixture.upstream, options), InputError);
  CHECK_THROWS(make_arena(nullptr), InputError);
}

// What a layer of a GPT of width 512 saves, scaled by the length of the sequence: eight tensors of the width, one of
// three widths, two of four, and small statistics.
TEST(arena_wastes_under_5_percent_on_a_gpt) {
  for (const int64_t sequence : {1536, 2048, 3000, 3072, 4096}) {
    Fixture fixture(ArenaOptions{});
    const int64_t width_bytes = sequence * 512 * 4;
    std::vector<std::pair<void*, int64_t>> blocks;
    const auto save = [&](int64_t bytes) { blocks.emplace_back(fixture.arena->allocate(bytes), bytes); };
    for (int step = 0; step < 3; ++step) {
      for (int layer = 0; layer < 12; ++layer) {
        for (int tensor = 0; tensor < 3; ++tensor) save(width_bytes);
        save(sequence * 4);
        save(3 * width_bytes);
        for (int tensor = 0; tensor < 5; ++tensor) save(width_bytes);
        save(4 * width_bytes);
        save(sequence * 4);
        save(4 * width_bytes);
      }
      fixture.arena->check_invariants();
      for (; !blocks.empty(); blocks.pop_back()) fixture.arena->deallocate(blocks.back().first, blocks.back().second);
    }
    const ArenaStats stats = fixture.arena->stats();
    const auto waste = stats.peak_reserved_bytes - stats.peak_used_bytes;
    std::printf("     sequence %lld: %.2f %% of %s\n", static_cast<long long>(sequence),
                100.0 * static_cast<double>(waste) / static_cast<double>(stats.peak_used_bytes),
                format_bytes(stats.peak_used_bytes).c_str());
    CHECK(waste * 20 < stats.peak_used_bytes);
    CHECK_EQUAL(stats.peak_reserved_bytes, fixture.upstream->peak_bytes());
  }
}
