// Pinned memory: every page is touched, registered while it lives and no longer, and a refusal leaves nothing behind.
#include <sys/mman.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "csrc/memory/pinning_device.h"
#include "memory/arena.h"
#include "memory/pages.h"
#include "memory/resources.h"

using namespace memsys;
using memory_test::PinningDevice;

namespace {

constexpr int64_t kBytes = (int64_t{9} << 20) + 4096 + 1;  // several huge pages, one page and a rest

int64_t resident_pages(void* pointer, int64_t bytes) {
  std::vector<unsigned char> residency(static_cast<size_t>((bytes + page_bytes() - 1) / page_bytes()));
  CHECK_EQUAL(mincore(pointer, static_cast<size_t>(bytes), residency.data()), 0);
  return std::count_if(residency.begin(), residency.end(), [](unsigned char page) { return (page & 1) != 0; });
}

bool is_mapped(void* pointer) {
  unsigned char residency = 0;
  return mincore(pointer, static_cast<size_t>(page_bytes()), &residency) == 0;
}

std::shared_ptr<PinningDevice> make_pinning_device() {
  return std::make_shared<PinningDevice>(make_host_device(make_threaded_executor()));
}

}  // namespace

TEST(pinned_memory_is_touched_when_it_is_handed_out) {
  const auto device = make_pinning_device();
  const auto page_count = (kBytes + page_bytes() - 1) / page_bytes();
  for (const auto& executor : {std::shared_ptr<Executor>(), make_threaded_executor(), make_seeded_executor(1)}) {
    for (const int64_t thread_count : {0, 1, 2, 5}) {
      const auto resource = make_pinned_resource(device, executor, thread_count);
      void* pointer = resource->allocate(kBytes);
      CHECK_EQUAL(resident_pages(pointer, kBytes), page_count);
      resource->deallocate(pointer, kBytes);
    }
  }
}

// The test above could not fail if plain mappings were resident at once.
TEST(pageable_memory_is_not_touched_when_it_is_handed_out) {
  const auto resource = make_mmap_resource();
  void* pointer = resource->allocate(kBytes);
  CHECK_EQUAL(resident_pages(pointer, kBytes), int64_t{0});
  resource->deallocate(pointer, kBytes);
}

TEST(pinned_memory_is_registered_while_it_lives) {
  const auto device = make_pinning_device();
  const auto arena = make_arena(make_pinned_resource(device));
  void* block = arena->allocate(kBytes);
  CHECK_EQUAL(device->registered_bytes(), arena->stats().reserved_bytes);
  CHECK(device->registered_bytes() >= kBytes);
  arena->deallocate(block, kBytes);
  arena->trim();
  CHECK_EQUAL(device->registered_bytes(), int64_t{0});
  CHECK(!is_mapped(block));
}

TEST(refused_registration_gives_the_memory_back_and_names_the_limit) {
  const auto device = make_pinning_device();
  const auto resource = make_pinned_resource(device);
  void* before = resource->allocate(kBytes);
  resource->deallocate(before, kBytes);
  device->refuses = true;
  std::string message;
  try {
    resource->allocate(kBytes);
  } catch (const BudgetError& error) {
    message = error.what();
  }
  for (const char* part : {"pinned", "9.00 MiB", "RLIMIT_MEMLOCK", "no pages left to lock", "ulimit -l", "host_budget"})
    CHECK(message.find(part) != std::string::npos);
  CHECK(device->last_refused != nullptr && !is_mapped(device->last_refused));
  device->refuses = false;
  resource->deallocate(resource->allocate(kBytes), kBytes);
  CHECK_EQUAL(device->registered_bytes(), int64_t{0});
}

TEST(pinned_memory_grows_from_several_threads_at_once) {
  const auto device = make_pinning_device();
  ArenaOptions options;
  options.slab_bytes = int64_t{4} << 20;
  options.budget_bytes = int64_t{32} << 20;
  const auto arena = make_arena(make_pinned_resource(device, make_threaded_executor()), options);
  std::vector<std::thread> threads;
  for (int index = 0; index < 4; ++index)
    threads.emplace_back([&] {
      for (int64_t step = 0; step < 20; ++step) {
        const int64_t bytes = (1 + step % 7) << 20;
        arena->deallocate(arena->allocate(bytes), bytes);
      }
    });
  for (auto& thread : threads) thread.join();
  arena->check_invariants();
  CHECK(arena->stats().peak_reserved_bytes <= options.budget_bytes);
  CHECK_EQUAL(device->registered_bytes(), arena->stats().reserved_bytes);
}
