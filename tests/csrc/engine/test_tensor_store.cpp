// Round trips on the CPU as device: every size and address that could upset direct transfers, both tiers, threads
// and seeds.
#include <cstring>
#include <vector>

#include "csrc/engine/rig.h"

using namespace engine_test;

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
const std::vector<int64_t> kSizes = {
    1, 2, 511, 512, 4095, 4096, 4097, 12289, 100003, kMiB, 4 * kMiB - 1, 4 * kMiB + 4095, 8192, 8 * kMiB + 1, 9 * kMiB};
const std::vector<int64_t> kShifts = {0, 1, 64, 4000, 4095, 4096 + 64};

void round_trips(Rig& rig, Tier tier) {
  for (const int64_t bytes : kSizes)
    for (const int64_t shift : kShifts) round_trip(rig, bytes, shift, tier);
  rig.store->drain();
  CHECK_EQUAL(rig.store->stats().in_flight_bytes, 0);
  CHECK_EQUAL(rig.store->stats().out_bytes, rig.store->stats().in_bytes);
  CHECK_EQUAL(rig.store->spill_used_bytes(), 0);
  rig.store->target_arena().trim();
  rig.store->host_arena().trim();
  CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
  CHECK_EQUAL(rig.store->host_budget().used_bytes(), 0);
}

}  // namespace

TEST(files_bring_back_every_size_from_every_address) {
  Rig rig;
  round_trips(rig, Tier::file);
  CHECK(rig.store->stats().file_out_bytes > 0);
}

TEST(files_without_direct_access_bring_back_every_size) {
  Rig rig({.direct = DirectMode::off});
  round_trips(rig, Tier::file);
}

TEST(the_thread_engine_brings_back_every_size) {
  Rig rig({.io = IoEngineChoice::threads});
  round_trips(rig, Tier::file);
}

TEST(host_memory_brings_back_every_size_from_every_address) {
  for (const HostCheck check : {HostCheck::off, HostCheck::checksum}) {
    Rig rig({.host_check = check});
    round_trips(rig, Tier::pageable);
  }
}

TEST(both_tiers_bring_back_the_bytes_on_40_schedules) {
  for (uint64_t seed = 0; seed < schedules(40); ++seed) {
    Rig rig({.seed = seed});
    for (const Tier tier : {Tier::file, Tier::pageable})
      for (const int64_t bytes : {int64_t{1}, int64_t{5000}, 4 * kMiB + 4097}) round_trip(rig, bytes, 64, tier);
  }
}

TEST(a_target_of_the_callers_own_may_lie_anywhere) {
  Rig rig;
  const int64_t bytes = 300007;
  const Block source = pattern(bytes, 7, 64);
  for (const Tier tier : {Tier::file, Tier::pageable}) {
    const BlockRef block = rig.store->swap_out(source.data(), bytes, {}, tier);
    for (const int64_t shift : kShifts) {
      const Block target(bytes, shift);
      rig.store->arrive(rig.store->swap_in(block, target.data(), {}), {});
      CHECK(is_same(source, target, bytes));
    }
  }
}

TEST(a_block_comes_back_several_times_at_once) {
  for (const Tier tier : {Tier::file, Tier::pageable}) {
    Rig rig;
    const int64_t bytes = 5 * kMiB + 3;
    const Block source = pattern(bytes, 3, 64);
    const BlockRef block = rig.store->swap_out(source.data(), bytes, {}, tier);
    std::vector<ArrivalRef> arrivals;
    for (int count = 0; count < 5; ++count) arrivals.push_back(rig.store->swap_in(block, nullptr, {}));
    for (const ArrivalRef& arrival : arrivals) {
      rig.store->arrive(arrival, {});
      CHECK(holds(arrival->target, source, bytes));
    }
  }
}

TEST(a_source_written_on_a_stream_leaves_after_that_write) {
  for (uint64_t seed = 0; seed < schedules(200); ++seed)
    for (const Tier tier : {Tier::file, Tier::pageable}) {
      Rig rig({.seed = seed});
      const StreamView writer = rig.runtime->device->create_stream("writer");
      const Block source(9001, 64), wanted = pattern(9001, seed);
      rig.runtime->device->copy(source.data(), wanted.data(), 9001, writer);
      const BlockRef block = rig.store->swap_out(source.data(), 9001, writer, tier);
      const ArrivalRef arrival = rig.store->swap_in(block, nullptr, {});
      rig.store->arrive(arrival, {});
      CHECK(holds(arrival->target, wanted, 9001));
      rig.store->drain();
      rig.runtime->device->destroy_stream(writer);
    }
}

TEST(no_bytes_and_negative_bytes_are_refused) {
  Rig rig;
  const Block source(1);
  CHECK_THROWS(rig.store->swap_out(source.data(), 0, {}, Tier::file), InputError);
  CHECK_THROWS(rig.store->swap_out(source.data(), -5, {}, Tier::file), InputError);
  CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
}

TEST(room_beside_restored_bytes_counts_in_the_device_budget) {
  Rig rig({.device_budget_bytes = 32 * kMiB});
  ByteBudget& budget = rig.store->device_budget();
  {
    const auto room = rig.store->allocate_target(20 * kMiB + 1);
    std::memset(room->data(), 1, 20 * kMiB + 1);
    CHECK(budget.used_bytes() > 20 * kMiB);
    CHECK_THROWS(rig.store->allocate_target(20 * kMiB), BudgetError);
  }
  rig.store->target_arena().trim();
  CHECK_EQUAL(budget.used_bytes(), 0);
}
