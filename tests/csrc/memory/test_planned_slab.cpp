// The planned slab: hits at planned places, right answers off the plan, no overlap ever, edges between streams.
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "csrc/device/devices.h"
#include "csrc/memory/upstreams.h"
#include "memory/planned_slab.h"
#include "plan/lifetime_plan.h"

using namespace memsys;
using memory_test::Block;

namespace {

constexpr int64_t kPage = 4096;

int64_t below(std::mt19937_64& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

std::vector<LifetimeRequest> random_step(std::mt19937_64& random, int64_t count) {
  std::vector<LifetimeRequest> requests;
  for (int64_t index = 0; index < count; ++index)
    requests.push_back({1 + below(random, 3000), index, index + 1 + below(random, 12)});
  return requests;
}

SlabPlan plan_of(const std::vector<LifetimeRequest>& requests) {
  const LifetimePlan plan = plan_lifetimes(requests, {.alignment = PlannedSlab::kAlignment, .work_limit = 100'000});
  SlabPlan result{{}, plan.peak_bytes};
  for (size_t index = 0; index < requests.size(); ++index)
    result.requests.push_back({requests[index].bytes, plan.offsets[index]});
  return result;
}

// Two blocks that follow each other at one address.
SlabPlan one_place() { return {{{1024, 0}, {1024, 0}}, 1024}; }

// Runs the step, with a pattern at both ends of each block; `change` may alter what is asked for, or when it is freed.
template <class Change>
void replay(PlannedSlab& slab, std::vector<LifetimeRequest> requests, const Change& change) {
  std::multimap<int64_t, Block> alive;  // by end
  uint64_t tag = 0;
  const auto release = [&](auto one) {
    CHECK(memory_test::is_intact(one->second));
    slab.free(one->second.pointer);
    alive.erase(one);
  };
  slab.begin_step({});
  for (LifetimeRequest& request : requests) {
    while (!alive.empty() && alive.begin()->first <= request.begin) release(alive.begin());
    change(request);
    const Block block{static_cast<char*>(slab.allocate(request.bytes, {})), request.bytes, ++tag};
    memory_test::mark(block);
    alive.emplace(request.end, block);
    slab.check_invariants();
  }
  while (!alive.empty()) release(alive.begin());
  slab.end_step();
  CHECK_EQUAL(slab.stats().live_bytes, 0);
}

}  // namespace

DEVICE_TEST(a_step_as_planned_takes_memory_once) {
  if (!bench.device->capabilities().host_addressable) SKIP("blocks are written from the host");
  std::mt19937_64 random(1);
  const auto requests = random_step(random, 40);
  const SlabPlan plan = plan_of(requests);
  PlannedSlab slab(bench.device, plan);
  for (int step = 0; step < 3; ++step) replay(slab, requests, [](LifetimeRequest&) {});
  const PlannedSlabStats stats = slab.stats();
  CHECK_EQUAL(stats.hit_count, 120);
  CHECK_EQUAL(stats.miss_count, 0);
  CHECK_EQUAL(stats.upstream_count, 1);
  CHECK_EQUAL(stats.peak_reserved_bytes, plan.slab_bytes);
}

TEST(a_step_off_the_plan_is_served_all_the_same) {
  const auto device = make_host_device(make_threaded_executor());
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    const auto requests = random_step(random, 60);
    PlannedSlab slab(device, plan_of(requests));
    const int64_t odds = 1 + below(random, 40);
    for (int step = 0; step < 4; ++step)
      replay(slab, requests, [&](LifetimeRequest& request) {
        if (below(random, odds) == 0) request.bytes = 1 + below(random, 9000);
        if (below(random, 5) == 0) request.end += below(random, 9);  // kept for longer than planned
      });
    const PlannedSlabStats stats = slab.stats();
    CHECK_EQUAL(stats.hit_count + stats.miss_count, 240);
    CHECK_EQUAL(stats.step_count, 4);
    slab.reset();
    CHECK_EQUAL(slab.stats().reserved_bytes, plan_of(requests).slab_bytes);
  }
}

TEST(the_first_mismatch_sends_the_rest_of_its_step_to_the_pool) {
  PlannedSlab slab(make_host_device(make_threaded_executor()), {{{512, 0}, {1024, 512}, {512, 1536}}, 2048});
  slab.begin_step({});
  char* first = static_cast<char*>(slab.allocate(512, {}));
  void* second = slab.allocate(1023, {});
  void* third = slab.allocate(512, {});
  CHECK_EQUAL(slab.stats().hit_count, 1);
  CHECK_EQUAL(slab.stats().miss_count, 2);
  CHECK(slab.piece_of(second).first != first && slab.piece_of(third).first != first);
  CHECK(slab.piece_of(first + 2047).first == first);
  CHECK(slab.piece_of(first + 2048).first != first);
  for (void* pointer : {static_cast<void*>(first), second, third}) slab.free(pointer);
  slab.begin_step({});
  CHECK(slab.allocate(512, {}) == first);
  CHECK(slab.allocate(1024, {}) == first + 512);
  CHECK(slab.allocate(512, {}) == first + 1536);
  slab.free(slab.allocate(512, {}));  // one more than planned
  CHECK_EQUAL(slab.stats().miss_count, 3);
  CHECK_EQUAL(slab.stats().hit_count, 4);
}

TEST(a_place_in_use_is_not_handed_out) {
  PlannedSlab slab(make_host_device(make_threaded_executor()), {{{512, 0}, {512, 512}}, 1024});
  slab.begin_step({});
  char* kept = static_cast<char*>(slab.allocate(512, {}));
  slab.begin_step({});
  void* other = slab.allocate(512, {});
  CHECK(other != kept);
  CHECK(slab.allocate(512, {}) == kept + 512);  // the rest of the step goes on as planned
  CHECK_EQUAL(slab.stats().conflict_count, 1);
  CHECK_EQUAL(slab.stats().miss_count, 1);
  slab.check_invariants();
}

TEST(outside_of_steps_and_on_other_streams_the_pool_serves) {
  const auto device = make_host_device(make_threaded_executor());
  const StreamView side = device->create_stream("side");
  PlannedSlab slab(device, one_place(), kPage);
  slab.free(slab.allocate(1024, {}));
  slab.begin_step({});
  void* elsewhere = slab.allocate(1024, side);
  void* planned = slab.allocate(1024, {});
  CHECK_EQUAL(slab.stats().hit_count, 1);
  CHECK_EQUAL(slab.stats().online_count, 2);
  CHECK_EQUAL(slab.stats().upstream_count, 3);
  slab.free(elsewhere);
  slab.free(planned);
  slab.end_step();
  CHECK(slab.allocate(0, {}) == nullptr);
  slab.free(nullptr);
  device->destroy_stream(side);
}

TEST(what_makes_no_sense_is_refused) {
  const auto device = make_host_device(make_threaded_executor());
  CHECK_THROWS(PlannedSlab(device, {{{512, 100}}, 1024}), InputError);
  CHECK_THROWS(PlannedSlab(device, {{{1024, 512}}, 1024}), InputError);
  CHECK_THROWS(PlannedSlab(device, {{{0, 0}}, 1024}), InputError);
  PlannedSlab slab(device, one_place());
  slab.begin_step({});
  char* block = static_cast<char*>(slab.allocate(1024, {}));
  CHECK_THROWS(slab.free(block + 512), InputError);
  CHECK_THROWS(slab.record_stream(block + 512, {}), InputError);
  slab.free(block);
  CHECK_THROWS(slab.free(block), InputError);
  int other = 0;
  CHECK_THROWS(slab.free(&other), InputError);
}

// A block that another stream wrote is reused by the planned stream: the simulation throws where the edge is missing.
TEST(reuse_across_streams_waits_for_the_other_stream) {
  for (const bool is_told : {true, false})
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const auto device = make_simulated_device(make_seeded_executor(seed));
      const StreamView lane = device->create_stream("lane");
      const EventId event = device->create_event();
      PlannedSlab slab(device, one_place());
      slab.begin_step({});
      void* first = slab.allocate(1024, {});
      device->note_use(first, 1024, {}, Use::write);
      device->record(event, {});
      device->wait(lane, event);
      device->fill(first, 1, 1024, lane);
      if (is_told) slab.record_stream(first, lane);
      slab.free(first);
      void* second = slab.allocate(1024, {});
      CHECK(second == first);
      bool caught = false;
      try {
        device->note_use(second, 1024, {}, Use::write);
      } catch (const OrderError&) {
        caught = true;
      }
      CHECK_EQUAL(caught, !is_told);
      CHECK_EQUAL(slab.stats().wait_count, is_told ? 1 : 0);
      device->record(event, lane);
      device->synchronize(event);  // the slab goes after the lane, told or not
      device->destroy_event(event);
    }
}

TEST(a_pool_block_stays_until_its_other_stream_is_done) {
  const auto executor = make_seeded_executor(4);
  const auto device = make_simulated_device(executor);
  const StreamView lane = device->create_stream("lane");
  PlannedSlab slab(device, {}, kPage);
  void* first = slab.allocate(kPage, {});
  const EventId event = device->create_event();
  device->record(event, {});
  device->wait(lane, event);
  device->fill(first, 1, kPage, lane);
  slab.record_stream(first, lane);
  slab.record_stream(first, lane);
  slab.free(first);
  void* second = slab.allocate(kPage, {});
  CHECK(second != first);
  CHECK_EQUAL(slab.stats().upstream_count, 2);
  executor->drain();
  void* third = slab.allocate(kPage, {});
  CHECK(third == first);
  CHECK_EQUAL(slab.stats().upstream_count, 2);
  slab.free(second);
  slab.free(third);
}

TEST(a_step_on_another_stream_comes_after_the_last) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto device = make_simulated_device(make_seeded_executor(seed));
    const StreamView side = device->create_stream("compute side");
    PlannedSlab slab(device, one_place());
    slab.begin_step({});
    void* first = slab.allocate(1024, {});
    device->note_use(first, 1024, {}, Use::write);
    slab.free(first);
    slab.begin_step(side);
    void* second = slab.allocate(1024, side);
    CHECK(second == first);
    device->note_use(second, 1024, side, Use::write);
    slab.free(second);
  }
}
