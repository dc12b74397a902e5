// The arena under random use: seeds and threads at random, budgets that are met, an upstream that fails.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "csrc/memory/upstreams.h"
#include "memory/arena.h"
#include "memory/resources.h"

using namespace memsys;
using memory_test::Block;
using memory_test::CountingResource;
using memory_test::is_intact;
using memory_test::mark;

namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kBudgetBytes = 600 * kPage;

ArenaOptions fuzz_options() {
  ArenaOptions options;
  options.slab_bytes = 64 * kPage;
  options.budget_bytes = kBudgetBytes;
  return options;
}

struct Tally {
  int64_t taken_count = 0, refused_count = 0;
  bool intact = true;
};

// Random use from one thread: both ways to allocate, sizes from a byte to more than a slab, patterns checked at free.
Tally churn(Arena& arena, uint64_t seed, int64_t step_count) {
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random() % bound); };
  std::vector<Block> live;
  Tally tally;
  const auto drop = [&](size_t index) {
    tally.intact = tally.intact && is_intact(live[index]);
    arena.deallocate(live[index].pointer, live[index].bytes);
    live[index] = live.back();
    live.pop_back();
  };
  for (int64_t step = 0; step < step_count; ++step) {
    if (below(100) < (step / 200 % 2 == 0 ? 65 : 35)) {
      const int64_t bytes =
          below(3) == 0 ? (1 + below(4)) * 4 * kPage : 1 + below(below(20) == 0 ? 90 * 4096 : 8 * 4096);
      Block block{nullptr, bytes, random()};
      if (below(2) == 0) {
        block.pointer = static_cast<char*>(arena.try_allocate(bytes));
      } else {
        try {
          block.pointer = static_cast<char*>(arena.allocate(bytes));
        } catch (const BudgetError&) {
        }
      }
      if (block.pointer == nullptr) {
        ++tally.refused_count;
        if (!live.empty()) drop(static_cast<size_t>(below(live.size())));
        continue;
      }
      ++tally.taken_count;
      mark(block);
      live.push_back(block);
    } else if (!live.empty()) {
      drop(static_cast<size_t>(below(live.size())));
    }
    if (below(300) == 0) arena.trim(below(2) * kBudgetBytes / 2);
    if (step % 16 == 0) arena.check_invariants();
  }
  while (!live.empty()) drop(live.size() - 1);
  return tally;
}

}  // namespace

TEST(arena_fuzz_keeps_every_block_intact) {
  for (const uint64_t seed : {3u, 99u, 1234u}) {
    std::printf("     seed %llu\n", static_cast<unsigned long long>(seed));
    const auto upstream = std::make_shared<CountingResource>(make_mmap_resource());
    const auto arena = make_arena(upstream, fuzz_options());
    const Tally tally = churn(*arena, seed, 20'000);
    CHECK(tally.intact);
    CHECK(tally.refused_count > 0 && tally.taken_count > 1000);  // else the budget was never met
    CHECK(upstream->peak_bytes() <= kBudgetBytes);
    CHECK_EQUAL(arena->stats().block_count, int64_t{0});
    arena->trim();
    arena->check_invariants();
    CHECK_EQUAL(upstream->current_bytes(), int64_t{0});
  }
}

TEST(arena_holds_its_budget_from_4_threads) {
  const auto upstream = std::make_shared<CountingResource>(make_mmap_resource());
  const auto arena = make_arena(upstream, fuzz_options());
  std::vector<Tally> tallies(4);
  std::vector<std::thread> threads;
  for (size_t index = 0; index < tallies.size(); ++index)
    threads.emplace_back([&, index] { tallies[index] = churn(*arena, 1000 + index, 6'000); });
  for (auto& thread : threads) thread.join();
  int64_t refused_count = 0;
  for (const Tally& tally : tallies) {
    CHECK(tally.intact);
    refused_count += tally.refused_count;
  }
  CHECK(refused_count > 0);
  CHECK(upstream->peak_bytes() <= kBudgetBytes);
  arena->check_invariants();
  arena->trim();
  CHECK_EQUAL(upstream->current_bytes(), int64_t{0});
}

// Every thread asks for less than its share, so none may be refused, whatever the others have under way.
TEST(arena_never_refuses_while_another_thread_brings_or_returns_memory) {
  ArenaOptions options = fuzz_options();
  options.budget_bytes = 4 * 64 * kPage;
  const auto arena = make_arena(make_mmap_resource(), options);
  std::atomic<int64_t> refused_count{0};
  std::vector<std::thread> threads;
  for (int64_t index = 0; index < 4; ++index)
    threads.emplace_back([&, index] {
      for (int64_t step = 0; step < 3000; ++step) {
        const int64_t bytes = (64 - (step + index) % 2 * 30) * kPage;  // sizes change, so slabs must be flushed
        try {
          arena->deallocate(arena->allocate(bytes), bytes);
        } catch (const BudgetError&) {
          ++refused_count;
        }
      }
    });
  for (auto& thread : threads) thread.join();
  arena->check_invariants();
  CHECK_EQUAL(refused_count.load(), int64_t{0});
}

TEST(arena_survives_a_fault_at_every_upstream_allocation) {
  int64_t attempt_count = 1;
  for (int64_t at = 0; at < attempt_count; ++at) {
    const auto counting = std::make_shared<CountingResource>(make_mmap_resource());
    const auto faulty = make_faulty_resource(counting);
    const auto arena = make_arena(faulty, fuzz_options());
    faulty->arm(at, false);
    CHECK(churn(*arena, 5, 1'500).intact);
    attempt_count = std::min<int64_t>(faulty->attempt_count(), 60);
    arena->check_invariants();
    void* block = arena->allocate(64 * kPage);
    arena->deallocate(block, 64 * kPage);
    arena->trim();
    CHECK_EQUAL(counting->current_bytes(), int64_t{0});
  }
  CHECK(attempt_count > 10);  // else the loop proved little
}

TEST(arena_refuses_while_the_upstream_does_and_recovers) {
  const auto faulty = make_faulty_resource(make_mmap_resource());
  const auto arena = make_arena(faulty, fuzz_options());
  void* kept = arena->allocate(kPage);
  faulty->arm(0, true);
  CHECK_THROWS(arena->allocate(100 * kPage), BudgetError);
  CHECK_EQUAL(faulty->attempt_count(), int64_t{2});  // once, and once more after the flush
  CHECK(arena->try_allocate(100 * kPage) == nullptr);
  CHECK(arena->try_allocate(kPage) != nullptr);  // what the arena has is still handed out
  arena->check_invariants();
  faulty->arm(-1, false);
  CHECK(arena->allocate(100 * kPage) != nullptr);
  arena->deallocate(kept, kPage);
  arena->check_invariants();
}

// A slab refused, but not the block: with little memory left the arena takes exactly what is asked.
TEST(arena_asks_for_less_when_the_upstream_has_no_whole_slab) {
  const auto counting = std::make_shared<CountingResource>(make_mmap_resource());
  const auto faulty = make_faulty_resource(counting);
  const auto arena = make_arena(faulty, fuzz_options());
  faulty->arm(0, false);
  CHECK(arena->allocate(3 * kPage) != nullptr);
  CHECK_EQUAL(counting->current_bytes(), 3 * kPage);
}
