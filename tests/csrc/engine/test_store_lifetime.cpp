// Budgets, and what is dropped while it is under way: blocks, arrivals and the store itself, by any thread and in a
// forked child.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "csrc/engine/rig.h"

using namespace engine_test;

namespace {

constexpr int64_t kBytes = 100007;

std::vector<RigOptions> rigs() {
  std::vector<RigOptions> all{{}};
  for (uint64_t seed = 0; seed < schedules(20); ++seed) all.push_back({.seed = seed});
  return all;
}

}  // namespace

TEST(a_block_dropped_under_way_gives_everything_back) {
  for (const RigOptions& options : rigs())
    for (const Tier tier : {Tier::file, Tier::pageable}) {
      Rig rig(options);
      const Block source = pattern(kBytes, 1, 64);
      for (int count = 0; count < 8; ++count) {
        BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, tier);
        if (count % 2 == 0) rig.store->swap_in(block, nullptr, {});
      }
      rig.store->drain();
      CHECK_EQUAL(rig.store->spill_used_bytes(), 0);
      CHECK_EQUAL(rig.store->host_arena().stats().used_bytes, 0);
      CHECK_EQUAL(rig.store->target_arena().stats().used_bytes, 0);
      CHECK_EQUAL(rig.store->stats().in_flight_bytes, 0);
      rig.store->target_arena().trim();
      CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
    }
}

TEST(a_store_dropped_with_transfers_in_flight_finishes_them) {
  for (const RigOptions& options : rigs())
    for (const Tier tier : {Tier::file, Tier::pageable}) {
      Rig rig(options);
      const Block source = pattern(kBytes, 2, 64);
      std::vector<BlockRef> blocks;
      std::vector<ArrivalRef> arrivals;
      for (int count = 0; count < 8; ++count) {
        blocks.push_back(rig.store->swap_out(source.data(), kBytes, {}, tier));
        arrivals.push_back(rig.store->swap_in(blocks.back(), nullptr, {}));
      }
      rig.store.reset();
      for (const BlockRef& block : blocks) CHECK(block->left.is_done() && block->stored.is_done());
      for (const ArrivalRef& arrival : arrivals) {
        CHECK(arrival->done.is_done() && !arrival->done.error());
        CHECK(holds(arrival->target, source, kBytes));
      }
      // Blocks outlive everything they came from.
      rig.runtime.reset();
    }
}

TEST(a_store_dropped_after_a_failed_task_finishes_its_transfers) {
  for (uint64_t seed = 0; seed < schedules(20); ++seed) {
    Rig rig({.seed = seed});
    const Block source = pattern(kBytes, 3, 64);
    const QueueId foreign = rig.runtime->executor->create_queue("foreign");
    for (int count = 0; count < 3; ++count)
      rig.runtime->executor->post(foreign, [] { throw InputError("a task of somebody else"); });
    const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
    rig.store.reset();
    CHECK(block->stored.is_done() && !block->stored.error());
  }
}

TEST(a_forked_child_drops_the_store_and_lives) {
  Rig rig;
  const Block source = pattern(kBytes, 4, 64);
  const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
  rig.store->drain();
  const pid_t child = fork();
  if (child == 0) {
    rig.store.reset();
    rig.runtime.reset();
    _exit(7);
  }
  int status = 0;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  const ArrivalRef arrival = rig.store->swap_in(block, nullptr, {});
  rig.store->arrive(arrival, {});
  CHECK(holds(arrival->target, source, kBytes));
}

TEST(the_main_thread_waits_in_here_while_1000_sources_leave) {
  constexpr int64_t kCount = 1000;
  Rig rig;
  const Block source = pattern(kBytes, 5, 64);
  std::vector<BlockRef> blocks;
  std::atomic<bool> is_over{false};
  int64_t reaped_count = 0;
  std::thread reaper([&] {  // as the Python reaper: sleeps until something ends
    for (int64_t seen = 0; !is_over; reaped_count = seen) seen = rig.store->wait_ended(seen, 50000);
  });
  for (int64_t index = 0; index < kCount; ++index)
    blocks.push_back(rig.store->swap_out(source.data(), kBytes, {}, index % 4 == 0 ? Tier::pageable : Tier::file));
  for (const BlockRef& block : blocks) rig.wait(block->left);
  rig.store->drain();
  is_over = true;
  rig.runtime->executor->notify();
  reaper.join();
  CHECK_EQUAL(rig.store->ended_count(), 2 * kCount);
  CHECK(reaped_count > 0);
  CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
}

TEST(whoever_waits_for_the_memory_of_a_dropped_arrival_is_told) {
  for (const Tier tier : {Tier::file, Tier::pageable}) {
    Rig rig;
    const Block source = pattern(kBytes, 6, 64);
    const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, tier);
    rig.wait(block->stored);
    for (int count = 0; count < 200; ++count) {
      int64_t seen = rig.store->ended_count();
      rig.wait(rig.store->swap_in(block, nullptr, {})->done);
      // Its tickets have ended; its memory may be on its way back still. Nobody else will wake this wait.
      while (rig.store->arriving_count() > 0) {
        const int64_t told = rig.store->wait_ended(seen, 20'000'000);
        CHECK(told > seen);
        seen = told;
      }
      CHECK_EQUAL(rig.store->target_arena().stats().used_bytes, 0);
    }
  }
}

TEST(several_threads_share_a_store) {
  Rig rig;
  std::vector<std::thread> threads;
  std::atomic<int> failed_count{0};
  for (int64_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&rig, &failed_count, thread] {
      try {
        for (int64_t round = 0; round < 20; ++round)
          round_trip(rig, kBytes + 7000 * thread + round, 64 * round, round % 3 == 0 ? Tier::pageable : Tier::file);
      } catch (const std::exception&) {
        ++failed_count;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(failed_count.load(), 0);
  rig.store->drain();
  CHECK_EQUAL(rig.store->spill_used_bytes(), 0);
}

TEST(the_source_may_be_dropped_before_the_block_is_in_the_file) {
  Rig rig({.kind = DeviceKind::simulated, .seed = 1});
  const DeviceBlock source(rig.runtime->device, kBytes);
  rig.runtime->device->note_use(source.data(), kBytes, {}, Use::write);
  const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
  CHECK(rig.store->order_source(block, {}));
  while (!block->left.is_done()) CHECK(rig.runtime->executor->step(1) == 1);
  CHECK(!block->stored.is_done());
  CHECK(block->host_copy() != nullptr);
  rig.wait(block->stored);
  CHECK(block->host_copy() == nullptr);
}

TEST(an_exhausted_budget_is_told_and_changes_nothing) {
  const Block source = pattern(kBytes, 6, 64);
  const auto check_refused = [&](Rig& rig, Tier tier) {
    CHECK_THROWS(rig.store->swap_out(source.data(), kBytes, {}, tier), BudgetError);
    CHECK_EQUAL(rig.store->stats().in_flight_bytes, 0);
    CHECK_EQUAL(rig.store->stats().out_count, 0);
    CHECK_EQUAL(rig.store->spill_used_bytes(), 0);
    CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
    CHECK_EQUAL(rig.store->disk_budget().used_bytes(), 0);
    CHECK_EQUAL(rig.store->host_budget().used_bytes(), 0);
  };
  Rig disk({.disk_budget_bytes = kBytes / 2}), host({.host_budget_bytes = kBytes / 2}),
      device({.device_budget_bytes = kBytes / 2});
  check_refused(disk, Tier::file);
  check_refused(host, Tier::pageable);
  check_refused(device, Tier::file);
  Rig staged({.kind = DeviceKind::simulated, .seed = 0, .disk_budget_bytes = kBytes / 2});
  CHECK_THROWS(staged.store->swap_out(source.data(), kBytes, {}, Tier::file), BudgetError);
  CHECK_EQUAL(staged.store->host_arena().stats().used_bytes, 0);
}

TEST(idle_memory_of_restored_tensors_is_no_reason_to_refuse) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  Rig rig({.device_budget_bytes = 24 * kMiB});
  const Block source = pattern(16 * kMiB, 7, 64);
  round_trip(rig, 12 * kMiB, 64, Tier::file);
  rig.store->drain();  // the lane holds the restored bytes until its task has ended
  const BlockRef block = rig.store->swap_out(source.data(), 16 * kMiB, {}, Tier::file);
  rig.wait(block->left);
  CHECK(!block->left.error());
}
