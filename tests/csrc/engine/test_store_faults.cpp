// Faults of the disk and of memory, one at a time and for ever, at every place they can strike: the bytes come back
// right or a typed error tells, nothing hangs, and once the fault is gone the next round is right.
#include <functional>
#include <vector>

#include "csrc/engine/rig.h"

using namespace engine_test;

namespace {

constexpr int64_t kBytes = (int64_t{4} << 20) + 9000;  // two pieces: two attempts out and two in
const std::vector<IoFault> kFaults = {IoFault::no_space, IoFault::io_error,       IoFault::interrupted, IoFault::again,
                                      IoFault::corrupt,  IoFault::short_transfer, IoFault::truncated};

enum class Outcome { right, told };

// One tensor's life on any device. The error, if any, is one of memsys; the source is released only if it left.
Outcome live(Rig& rig, const Block& wanted, Tier tier) {
  const auto& device = rig.runtime->device;
  const DeviceBlock source(device, kBytes), target(device, kBytes);
  std::memcpy(source.data(), wanted.data(), kBytes);
  device->note_use(source.data(), kBytes, {}, Use::write);
  try {
    const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, tier);
    rig.store->order_source(block, {});
    rig.wait(block->left);
    if (block->left.error()) {
      rig.store->device_budget().release(kBytes);  // as the owner does that keeps the source and then drops it
      std::rethrow_exception(block->left.error());
    }
    rig.wait(block->stored);
    const ArrivalRef arrival = rig.store->swap_in(block, target.data(), {});
    rig.store->arrive(arrival, {});
    device->note_use(target.data(), kBytes, {}, Use::read);
    CHECK(holds(target.data(), wanted, kBytes));
    return Outcome::right;
  } catch (const OrderError&) {
    throw;
  } catch (const Error&) {
    return Outcome::told;
  }
}

void check_clean(Rig& rig) {
  rig.store->drain();
  CHECK_EQUAL(rig.store->stats().in_flight_bytes, 0);
  CHECK_EQUAL(rig.store->device_budget().used_bytes(), 0);
  CHECK_EQUAL(rig.store->spill_used_bytes(), 0);
  CHECK_EQUAL(rig.store->host_arena().stats().used_bytes, 0);
  rig.store->host_arena().check_invariants();
}

// Strikes at every attempt that a life makes, and once past the last; returns how many lives ended with an error.
int strike_everywhere(Rig& rig, FaultSpan span, IoFault fault, Tier tier) {
  constexpr int64_t kAttempts = 5;
  const Block wanted = pattern(kBytes, 5);
  int told_count = 0;
  for (int64_t at = 0; at < kAttempts; ++at) {
    rig.runtime->faulty_io->arm({.fault = fault, .at = at, .span = span});
    told_count += live(rig, wanted, tier) == Outcome::told;
    rig.runtime->faulty_io->arm({});
    CHECK(live(rig, wanted, tier) == Outcome::right);
    check_clean(rig);
  }
  return told_count;
}

void on_all_rigs(Tier tier, const std::function<void(Rig&)>& body) {
  std::vector<RigOptions> all{{.faults = FaultSeam::faulty}};
  for (uint64_t seed = 0; seed < schedules(3); ++seed)
    for (const DeviceKind kind : {DeviceKind::host, DeviceKind::simulated})
      all.push_back({.kind = kind, .seed = seed, .faults = FaultSeam::faulty});
  for (const DeviceKind kind : {DeviceKind::host, DeviceKind::simulated})
    all.push_back({.kind = kind, .seed = 7, .faults = FaultSeam::faulty, .host_check = HostCheck::checksum});
  for (const RigOptions& options : all) {
    Rig rig(options);
    CHECK(live(rig, pattern(kBytes, 1), tier) == Outcome::right);
    body(rig);
  }
}

}  // namespace

TEST(every_disk_fault_at_every_attempt_ends_in_right_bytes_or_an_error) {
  on_all_rigs(Tier::file, [](Rig& rig) {
    for (const IoFault fault : kFaults)
      for (const FaultSpan span : {FaultSpan::once, FaultSpan::persistent})
        strike_everywhere(rig, span, fault, Tier::file);
  });
}

TEST(a_disk_that_fails_for_good_is_told) {
  on_all_rigs(Tier::file, [](Rig& rig) {
    for (const IoFault fault : {IoFault::no_space, IoFault::io_error, IoFault::interrupted, IoFault::corrupt})
      CHECK(strike_everywhere(rig, FaultSpan::persistent, fault, Tier::file) > 0);
  });
}

TEST(short_and_interrupted_transfers_are_completed) {
  on_all_rigs(Tier::file, [](Rig& rig) {
    for (const IoFault fault : {IoFault::interrupted, IoFault::again, IoFault::short_transfer})
      CHECK_EQUAL(strike_everywhere(rig, FaultSpan::once, fault, Tier::file), 0);
    CHECK_EQUAL(strike_everywhere(rig, FaultSpan::persistent, IoFault::short_transfer, Tier::file), 0);
  });
}

TEST(a_failed_file_write_leaves_the_block_in_host_memory) {
  for (uint64_t seed = 0; seed < schedules(10); ++seed) {
    Rig rig({.kind = DeviceKind::simulated, .seed = seed, .faults = FaultSeam::faulty});
    rig.runtime->faulty_io->arm({.fault = IoFault::io_error, .at = 1, .span = FaultSpan::persistent});
    CHECK(live(rig, pattern(kBytes, seed), Tier::file) == Outcome::right);
    check_clean(rig);
  }
}

TEST(a_source_that_could_not_leave_stays_reserved_and_is_whole) {
  Rig rig({.faults = FaultSeam::faulty});
  const Block source = pattern(kBytes, 2, 64), wanted = pattern(kBytes, 2);
  rig.runtime->faulty_io->arm({.fault = IoFault::no_space, .at = 0, .span = FaultSpan::persistent});
  const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, Tier::file);
  rig.wait(block->left);
  CHECK_THROWS(std::rethrow_exception(block->left.error()), SpillError);
  CHECK_EQUAL(rig.store->device_budget().used_bytes(), kBytes);
  CHECK_EQUAL(rig.store->stats().in_flight_bytes, 0);
  CHECK(is_same(source, wanted, kBytes));
  const Block target(kBytes);
  CHECK_THROWS(rig.store->arrive(rig.store->swap_in(block, target.data(), {}), {}), SpillError);
}

TEST(a_bit_flipped_in_a_host_copy_is_told) {
  for (uint64_t seed = 0; seed < schedules(10); ++seed) {
    Rig rig({.kind = DeviceKind::simulated, .seed = seed, .host_check = HostCheck::checksum});
    const DeviceBlock source(rig.runtime->device, 5000), target(rig.runtime->device, 5000);
    rig.runtime->device->note_use(source.data(), 5000, {}, Use::write);
    const BlockRef block = rig.store->swap_out(source.data(), 5000, {}, Tier::pageable);
    rig.store->drain();
    rig.store->order_source(block, {});
    static_cast<unsigned char*>(block->host_copy()->data())[4321] ^= 1;
    CHECK_THROWS(rig.store->arrive(rig.store->swap_in(block, target.data(), {}), {}), CorruptionError);
  }
}

TEST(memory_that_runs_out_at_any_allocation_is_told_and_changes_nothing) {
  for (const Tier tier : {Tier::pageable, Tier::file})
    on_all_rigs(tier, [&](Rig& rig) {
      const bool has_staging = tier == Tier::pageable || rig.runtime->device->capabilities().kind != DeviceKind::host;
      for (int64_t at = 0; at < 3; ++at)
        for (const bool persistent : {false, true}) {
          rig.store->host_arena().trim();
          rig.runtime->faulty_memory->arm(at, persistent);
          const Outcome outcome = live(rig, pattern(kBytes, 9), tier);
          CHECK(!has_staging || at > 0 || !persistent || outcome == Outcome::told);
          rig.runtime->faulty_memory->arm(-1, false);
          CHECK(live(rig, pattern(kBytes, 10), tier) == Outcome::right);
          check_clean(rig);
        }
    });
}
