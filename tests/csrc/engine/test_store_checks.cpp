// With checksums asked for, a bit that flips on any road is told: in a copy out, in a copy in, in a host copy, in a
// file, in the edges of a file's tensor. Each test first shows that the road is right where nothing flips.
#include "base/error.h"
#include "csrc/check.h"
#include "csrc/engine/flipping_device.h"
#include "csrc/engine/rig.h"

using namespace engine_test;

namespace {

constexpr int64_t kBytes = 20000;

struct Trip {
  bool has_left = false, is_right = false, is_told = false;
};

// A block out and in over a link of which the n-th copy flips a bit.
Trip trip(uint64_t seed, Tier tier, HostCheck check, int flipped) {
  RigOptions options{.kind = DeviceKind::simulated, .seed = seed, .host_check = check};
  Rig rig(options);
  const auto device = std::make_shared<FlippingDevice>(rig.runtime->device);
  rig.open(options, device);
  Trip found;
  {
    const DeviceBlock source(device, kBytes), target(device, kBytes);
    device->note_use(source.data(), kBytes, {}, Use::write);
    const Block wanted = pattern(kBytes, seed);
    std::memcpy(source.data(), wanted.data(), kBytes);
    device->flip(flipped, static_cast<unsigned char>(wanted.data()[kBytes - 1] ^ 1U));
    const BlockRef block = rig.store->swap_out(source.data(), kBytes, {}, tier);
    rig.store->drain();
    found.has_left = !block->left.error();
    try {
      rig.store->arrive(rig.store->swap_in(block, target.data(), {}), {});
      rig.store->drain();
      device->settle();
      found.is_right = holds(target.data(), wanted, kBytes);
    } catch (const CorruptionError&) {
      found.is_told = true;
    }
    rig.store->drain();
    device->settle();
  }
  return found;
}

}  // namespace

TEST(a_bit_flipped_by_a_lane_is_told_in_both_directions) {
  for (const Tier tier : {Tier::pageable, Tier::file})
    for (uint64_t seed = 0; seed < schedules(20); ++seed) {
      CHECK(trip(seed, tier, HostCheck::checksum, -1).is_right);
      // Out, out again; in, and back: any of the four.
      for (int flipped = 0; flipped < 4; ++flipped) {
        const Trip found = trip(seed, tier, HostCheck::checksum, flipped);
        CHECK(found.is_told && !found.is_right);
        CHECK_EQUAL(found.has_left, flipped >= 2);
      }
    }
}

TEST(a_bit_flipped_by_a_lane_is_not_looked_for_unasked) {
  for (int flipped = 0; flipped < 2; ++flipped) {
    const Trip found = trip(1, Tier::pageable, HostCheck::off, flipped);
    CHECK(!found.is_told && !found.is_right);
  }
}

TEST(a_bit_flipped_in_the_edges_of_a_file_is_told) {
  for (const int64_t bytes : {int64_t{100}, int64_t{4096 * 3 + 77}, int64_t{70001}}) {
    const Block source = pattern(bytes, 3, 40);
    Rig rig;
    const BlockRef block = rig.store->swap_out(source.data(), bytes, {}, Tier::file);
    rig.store->drain();
    const auto edges = block->file_span->edges();
    if (edges.empty()) SKIP("the file system needs no alignment: nothing stays in memory");
    const ArrivalRef right = rig.store->swap_in(block, nullptr, {});
    rig.store->arrive(right, {});
    CHECK(holds(right->target, source, bytes));
    for (const size_t at : {size_t{0}, edges.size() / 2, edges.size() - 1}) {
      edges[at] ^= 0x40;
      CHECK_THROWS(rig.store->arrive(rig.store->swap_in(block, nullptr, {}), {}), CorruptionError);
      edges[at] ^= 0x40;
    }
  }
}
