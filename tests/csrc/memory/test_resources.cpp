// One contract for every resource: pageable, pinned on each kind of device and executor, device memory, and an arena
// over each of them.
#include <functional>
#include <set>
#include <thread>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "csrc/memory/pinning_device.h"
#include "csrc/memory/upstreams.h"
#include "device/device.h"
#include "memory/arena.h"
#include "memory/buffer.h"
#include "memory/pages.h"
#include "memory/resources.h"

using namespace memsys;
using memory_test::Block;
using memory_test::is_intact;
using memory_test::mark;
using memory_test::PinningDevice;

namespace {

struct Case {
  const char* name;
  Tier tier;
  std::shared_ptr<MemoryResource> resource;
};

std::vector<Case> bottom_resources() {
  const auto threaded = make_threaded_executor();
  const auto seeded = make_seeded_executor(7);
  const auto host = make_host_device(threaded);
  const auto pinning = std::make_shared<PinningDevice>(host);
  const auto simulated = make_simulated_device(seeded);
  return {
      {"mmap", Tier::pageable, make_mmap_resource()},
      {"pinned, host device", Tier::pageable, make_pinned_resource(host)},
      {"pinned, host device, threaded touch", Tier::pageable, make_pinned_resource(host, threaded)},
      {"pinned, pinning device, threaded touch", Tier::pinned, make_pinned_resource(pinning, threaded, 3)},
      {"pinned, simulated device, seeded touch",
       simulated->capabilities().needs_pinning ? Tier::pinned : Tier::pageable,
       make_pinned_resource(simulated, seeded)},
      {"device", Tier::device, make_device_resource(host)},
  };
}

std::vector<Case> all_resources() {
  std::vector<Case> cases = bottom_resources();
  for (const Case& bottom : bottom_resources()) {
    ArenaOptions options;
    options.slab_bytes = int64_t{8} << 20;
    cases.push_back({bottom.name, bottom.tier, make_arena(bottom.resource, options)});
  }
  return cases;
}

void for_each_resource(const std::function<void(const Case&)>& body) {
  for (const Case& one : all_resources()) {
    try {
      body(one);
    } catch (const check::Failure& failure) {
      throw check::Failure(std::string(one.name) + ": " + failure.what());
    }
  }
}

}  // namespace

TEST(resources_give_whole_blocks_that_do_not_overlap) {
  for_each_resource([](const Case& one) {
    CHECK(one.resource->tier() == one.tier);
    std::vector<Block> blocks;
    uint64_t tag = 0;
    for (const int64_t bytes : {1, 63, 4096, 4097, 100'000, 2 << 20, (2 << 20) + 1, 5 << 20, 9'000'001}) {
      blocks.push_back({static_cast<char*>(one.resource->allocate(bytes)), bytes, ++tag});
      CHECK(blocks.back().pointer != nullptr);
      if (one.tier != Tier::device)
        CHECK_EQUAL(reinterpret_cast<uintptr_t>(blocks.back().pointer) % static_cast<uintptr_t>(page_bytes()),
                    uintptr_t{0});
      mark(blocks.back());
    }
    for (const Block& block : blocks) {
      CHECK(is_intact(block));
      one.resource->deallocate(block.pointer, block.bytes);
    }
  });
}

TEST(resources_refuse_nonsense_and_too_much) {
  for_each_resource([](const Case& one) {
    CHECK_THROWS(one.resource->allocate(0), InputError);
    CHECK_THROWS(one.resource->allocate(-1), InputError);
    CHECK_THROWS(one.resource->allocate(int64_t{1} << 60), BudgetError);
    one.resource->deallocate(one.resource->allocate(4096), 4096);  // and work on
  });
}

TEST(buffer_owns_and_moves) {
  const auto counting = std::make_shared<memory_test::CountingResource>(make_mmap_resource());
  {
    Buffer buffer(counting, 5000);
    CHECK_EQUAL(counting->current_bytes(), int64_t{5000});
    Buffer other = std::move(buffer);
    CHECK(buffer.empty() && other.size() == 5000 && other.tier() == Tier::pageable);
    other = Buffer(counting, 100);
    CHECK_EQUAL(counting->current_bytes(), int64_t{100});
  }
  CHECK_EQUAL(counting->current_bytes(), int64_t{0});
}

TEST(tiers_have_distinct_names) {
  std::set<std::string> names;
  for (const Tier tier : {Tier::device, Tier::pinned, Tier::pageable, Tier::file}) names.insert(tier_name(tier));
  CHECK_EQUAL(names.size(), size_t{4});
  CHECK_THROWS(tier_name(static_cast<Tier>(17)), InputError);
}

TEST(faulty_resource_fails_the_allocation_it_was_told_to) {
  const auto faulty = make_faulty_resource(make_mmap_resource());
  const auto fails = [&] {
    try {
      faulty->deallocate(faulty->allocate(1), 1);
      return false;
    } catch (const BudgetError&) {
      return true;
    }
  };
  CHECK(!fails());
  faulty->arm(1, false);
  CHECK(!fails() && fails() && !fails());
  CHECK_EQUAL(faulty->attempt_count(), int64_t{3});
  faulty->arm(1, true);
  CHECK(!fails() && fails() && fails());
  faulty->arm(-1, false);
  CHECK(!fails());
}
