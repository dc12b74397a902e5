// The record of transfers and levels: silent while off, true and bounded while on, safe from many threads, and the
// same for the same seed.
#include <algorithm>
#include <thread>
#include <vector>

#include "csrc/engine/rig.h"
#include "engine/transfer_log.h"

using namespace engine_test;

namespace {

constexpr int64_t kBytes = 300000;
constexpr int64_t kCapacity = 1 << 12;

// Three blocks out to `tier` and in again.
void three_trips(Rig& rig, Tier tier) {
  for (int64_t shift = 0; shift < 3; ++shift) round_trip(rig, kBytes + shift, 64, tier);
  rig.store->drain();
}

int64_t device_bytes(const std::vector<TransferEntry>& entries, Direction direction) {
  int64_t sum = 0;
  for (const TransferEntry& entry : entries)
    if (entry.hop == Hop::device && entry.direction == direction) sum += entry.bytes;
  return sum;
}

int64_t last_level(const std::vector<LevelEntry>& levels, Tier tier) {
  int64_t last = -1;
  for (const LevelEntry& level : levels)
    if (level.tier == tier) last = level.used_bytes;
  return last;
}

int64_t peak_level(const std::vector<LevelEntry>& levels, Tier tier) {
  int64_t peak = -1;
  for (const LevelEntry& level : levels)
    if (level.tier == tier) peak = std::max(peak, level.used_bytes);
  return peak;
}

}  // namespace

TEST(a_log_that_is_off_keeps_nothing) {
  Rig rig;
  CHECK_EQUAL(rig.store->log().begin(), int64_t{-1});
  three_trips(rig, Tier::file);
  CHECK(rig.store->log().transfers().empty());
  CHECK(rig.store->log().levels().empty());
}

TEST(a_log_has_every_transfer_and_level_of_both_roads) {
  for (const Tier tier : {Tier::file, Tier::pageable}) {
    Rig rig;
    rig.store->start_log(kCapacity);
    three_trips(rig, tier);
    rig.store->stop_log();
    const auto entries = rig.store->log().transfers();
    CHECK_EQUAL(entries.size(), size_t{6});
    CHECK_EQUAL(device_bytes(entries, Direction::out), rig.store->stats().out_bytes);
    CHECK_EQUAL(device_bytes(entries, Direction::in), rig.store->stats().in_bytes);
    for (const TransferEntry& entry : entries) {
      CHECK(entry.begin_us >= 0);
      CHECK(entry.begin_us <= entry.end_us);
      CHECK(entry.outcome == TransferOutcome::done);
      CHECK_EQUAL(entry.tier == Tier::file, tier == Tier::file);
    }
    CHECK_EQUAL(entries.front().block_id, int64_t{0});
    CHECK_EQUAL(entries.back().block_id, int64_t{2});
    const auto levels = rig.store->log().levels();
    CHECK_EQUAL(peak_level(levels, Tier::device), rig.store->device_budget().peak_bytes());
    CHECK_EQUAL(last_level(levels, Tier::device), rig.store->device_budget().used_bytes());
    CHECK_EQUAL(peak_level(levels, Tier::file), rig.store->disk_budget().peak_bytes());
    CHECK_EQUAL(peak_level(levels, Tier::pinned), rig.store->host_budget().peak_bytes());
    // Stopped: what comes later is not kept, what was kept stays.
    three_trips(rig, tier);
    CHECK_EQUAL(rig.store->log().transfers().size(), size_t{6});
  }
}

TEST(a_block_that_goes_through_host_memory_to_a_file_has_two_hops_each_way) {
  Rig rig({.kind = DeviceKind::simulated, .seed = 7});
  rig.store->start_log(kCapacity);
  DeviceBlock source(rig.runtime->device, kBytes), target(rig.runtime->device, kBytes);
  rig.runtime->device->fill(source.data(), 3, kBytes, {});
  const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
  CHECK(rig.store->order_source(block, {}));
  rig.wait(block->stored);
  const ArrivalRef arrival = rig.store->swap_in(block, target.data(), {});
  rig.store->arrive(arrival, {});
  rig.store->drain();
  const auto entries = rig.store->log().transfers();
  CHECK_EQUAL(entries.size(), size_t{4});
  CHECK_EQUAL(device_bytes(entries, Direction::out), kBytes);
  CHECK_EQUAL(device_bytes(entries, Direction::in), kBytes);
  CHECK(entries[0].tier != Tier::file);
  CHECK(entries[1].tier == Tier::file && entries[1].hop == Hop::below);
  CHECK(entries[0].end_us <= entries[1].begin_us);
  CHECK(entries[2].tier == Tier::file && entries[2].direction == Direction::in);
}

TEST(a_transfer_that_fails_says_so) {
  Rig rig({.faults = FaultSeam::faulty});
  rig.store->start_log(kCapacity);
  rig.runtime->faulty_io->arm({.fault = IoFault::no_space, .at = 0, .span = FaultSpan::persistent});
  const Block source = pattern(kBytes, 1);
  const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
  rig.wait(block->left);
  rig.store->drain();
  const auto entries = rig.store->log().transfers();
  CHECK_EQUAL(entries.size(), size_t{1});
  CHECK(entries[0].outcome == TransferOutcome::failed);
}

TEST(one_seed_is_one_record) {
  const auto record = [](uint64_t seed) {
    Rig rig({.seed = seed});
    rig.store->start_log(kCapacity);
    for (const Tier tier : {Tier::file, Tier::pageable}) three_trips(rig, tier);
    std::vector<int64_t> times;
    for (const TransferEntry& entry : rig.store->log().transfers())
      for (const int64_t value : {entry.begin_us, entry.end_us, entry.block_id}) times.push_back(value);
    for (const LevelEntry& level : rig.store->log().levels())
      for (const int64_t value : {level.at_us, level.used_bytes}) times.push_back(value);
    return times;
  };
  for (uint64_t seed = 0; seed < schedules(20); ++seed) CHECK(record(seed) == record(seed));
}

TEST(a_full_log_keeps_the_newest_and_counts_the_rest) {
  const auto executor = make_seeded_executor(1);
  TransferLog log(executor);
  CHECK_THROWS(log.start(0), InputError);
  log.start(4);
  for (int64_t id = 0; id < 11; ++id) {
    TransferEntry entry{.begin_us = log.begin(), .block_id = id};
    log.end(entry);
  }
  log.note_level(Tier::file, 5);
  const auto kept = log.transfers();
  CHECK_EQUAL(kept.size(), size_t{4});
  for (size_t place = 0; place < kept.size(); ++place)
    CHECK_EQUAL(kept[place].block_id, static_cast<int64_t>(place) + 7);
  CHECK_EQUAL(log.dropped_count(), int64_t{7});
  log.start(4);
  CHECK(log.transfers().empty());
  CHECK_EQUAL(log.dropped_count(), int64_t{0});
}

TEST(a_transfer_that_began_before_the_log_is_left_out) {
  TransferLog log(make_seeded_executor(1));
  TransferEntry entry{.begin_us = log.begin()};
  log.start(4);
  log.end(entry);
  CHECK(log.transfers().empty());
}

TEST(many_threads_may_write_while_others_read_and_restart) {
  const auto log = std::make_shared<TransferLog>(make_threaded_executor());
  ByteBudget budget("device_budget", -1, level_watch(log, Tier::device));
  log->start(64);
  std::vector<std::jthread> threads;
  for (int64_t id = 0; id < 3; ++id)
    threads.emplace_back([&, id] {
      for (int round = 0; round < 500; ++round) {
        budget.reserve(8);
        log->end({.begin_us = log->begin(), .bytes = 8, .block_id = id});
        budget.release(8);
      }
    });
  for (int round = 0; round < 50; ++round) {
    CHECK(log->transfers().size() <= 64);
    CHECK(log->levels().size() <= 64);
    if (round % 10 == 0) log->start(64);
    if (round % 10 == 5) log->stop();
  }
  threads.clear();
  log->start(64);
  budget.reserve(1);
  CHECK_EQUAL(last_level(log->levels(), Tier::device), int64_t{1});
  budget.release(1);
}
