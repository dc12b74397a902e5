// What the simulation alone does: files and the host as an actor, its pool, and how it tells.
#include <atomic>
#include <cstring>
#include <vector>

#include "csrc/device/devices.h"

namespace {

using namespace memsys;

constexpr int64_t kCount = 4096;

struct World {
  explicit World(uint64_t seed = 1) : executor(make_seeded_executor(seed)), device(make_simulated_device(executor)) {
    lane = device->create_stream("lane");
    event = device->create_event();
    file = executor->create_queue("file");
  }
  void write_file() {
    executor->post(
        file,
        [this] {
          device->note_use(pinned.data(), kCount, kHostStream, Use::read);
          written = true;
        },
        device->gate(event));
  }
  std::vector<unsigned char> pinned = std::vector<unsigned char>(kCount), bytes = std::vector<unsigned char>(kCount);
  std::atomic<bool> written{false};
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Device> device;
  StreamView lane;
  EventId event;
  QueueId file = 0;
};

}  // namespace

TEST(the_host_reads_a_pinned_block_only_after_its_copy) {
  World world;
  world.device->copy(world.pinned.data(), world.bytes.data(), kCount, world.lane);
  CHECK_THROWS(world.device->note_use(world.pinned.data(), kCount, kHostStream, Use::read), OrderError);
  world.device->record(world.event, world.lane);
  world.executor->drain();
  // Lucky: the bytes are there, but nothing said so.
  CHECK_THROWS(world.device->note_use(world.pinned.data(), kCount, kHostStream, Use::read), OrderError);
  CHECK(world.device->query(world.event));
  world.device->note_use(world.pinned.data(), kCount, kHostStream, Use::read);
}

TEST(a_file_write_ends_before_its_pinned_block_is_reused) {
  for (uint64_t seed = 0; seed < 20; ++seed)
    for (const bool waits : {true, false}) {
      World world(seed);
      world.device->copy(world.pinned.data(), world.bytes.data(), kCount, world.lane);
      world.device->record(world.event, world.lane);
      world.write_file();
      if (waits) world.executor->wait_until([&] { return world.written.load(); });
      bool caught = false;
      try {
        world.device->copy(world.pinned.data(), world.bytes.data(), kCount, world.lane);
        world.executor->drain();
      } catch (const OrderError&) {
        caught = true;
      }
      CHECK(caught == !waits);
    }
}

TEST(a_query_that_says_no_teaches_nothing) {
  World world;
  world.device->fill(world.pinned.data(), 1, kCount, world.lane);
  world.device->record(world.event, world.lane);
  CHECK(!world.device->query(world.event));
  CHECK_THROWS(world.device->note_use(world.pinned.data(), kCount, kHostStream, Use::write), OrderError);
}

TEST(events_of_the_compute_stream_complete_later) {
  World world;
  world.device->record(world.event, {});
  CHECK(!world.device->query(world.event));
  world.device->synchronize(world.event);
  CHECK(world.device->query(world.event));
}

TEST(freed_bytes_are_poisoned_reused_by_their_stream_and_not_touched) {
  World world;
  auto* first = static_cast<unsigned char*>(world.device->allocate(kCount, {}));
  std::memset(first, 1, kCount);
  world.device->note_use(first, kCount, {}, Use::write);
  world.device->free(first, kCount, {});
  CHECK_EQUAL(int{first[0]}, 0xDB);
  CHECK_EQUAL(int{first[kCount - 1]}, 0xDB);
  CHECK_THROWS(world.device->note_use(first, 1, {}, Use::read), OrderError);
  CHECK_THROWS(world.device->copy(world.bytes.data(), first, kCount, {}), OrderError);
  CHECK(world.device->allocate(kCount, world.lane) != first);
  CHECK(world.device->allocate(kCount, {}) == first);
  world.device->note_use(first, kCount, {}, Use::write);
}

TEST(a_violation_in_free_is_thrown_by_the_next_call) {
  World world;
  void* block = world.device->allocate(kCount, {});
  world.device->free(block, kCount, {});
  world.device->free(block, kCount, {});
  CHECK_THROWS(world.device->create_event(), OrderError);
  world.device->destroy_event(world.device->create_event());
  void* other = world.device->allocate(kCount, {});
  world.device->free(other, kCount - 1, {});
  CHECK_THROWS(world.device->create_event(), InputError);
}

TEST(memory_of_another_allocator_is_known_from_its_first_use) {
  World world;
  unsigned char* tensor = world.bytes.data();
  // The first use announced is the program's: it made the bytes, so a lane must come after it.
  world.device->note_use(tensor, kCount, {}, Use::read);
  CHECK_THROWS(world.device->copy(world.pinned.data(), tensor, kCount, world.lane), OrderError);
  world.device->record(world.event, {});
  world.device->wait(world.lane, world.event);
  world.device->copy(world.pinned.data(), tensor, kCount, world.lane);
  CHECK_THROWS(world.device->note_free(tensor, kCount, {}), OrderError);
  world.device->record(world.event, world.lane);
  world.device->wait({}, world.event);
  world.device->note_free(tensor, kCount, {});
  // A new tensor at the old address: the lane's earlier wait does not cover it.
  world.device->note_use(tensor, kCount, {}, Use::read);
  CHECK_THROWS(world.device->copy(world.pinned.data(), tensor, kCount, world.lane), OrderError);
}

TEST(a_second_compute_stream_is_ordered_like_any) {
  World world;
  const StreamView side = world.device->create_stream("compute side");
  void* block = world.device->allocate(kCount, {});
  world.device->note_use(block, kCount, {}, Use::write);
  CHECK_THROWS(world.device->note_use(block, kCount, side, Use::read), OrderError);
  world.device->record(world.event, {});
  world.device->wait(side, world.event);
  world.device->note_use(block, kCount, side, Use::read);
  CHECK_THROWS(world.device->note_use(block, kCount, {}, Use::write), OrderError);
}

TEST(an_order_error_tells_the_story) {
  World world;
  void* block = world.device->allocate(kCount, {});
  world.device->note_use(block, kCount, {}, Use::write);
  std::string message;
  try {
    world.device->copy(world.pinned.data(), block, kCount, world.lane);
  } catch (const OrderError& error) {
    message = error.what();
  }
  for (const char* part : {"a copy's read on stream 'lane'", "an operation's write on stream 0", "allocation",
                           "wait for an event recorded on stream 0", "oldest first"})
    if (message.find(part) == std::string::npos) check::fail(__FILE__, __LINE__, message);
}

TEST(pinning_checks_what_cuda_checks) {
  World world;
  void* block = world.device->allocate(kCount, {});
  world.device->register_host(block, kCount);
  CHECK_THROWS(world.device->register_host(block, kCount), DeviceError);
  world.device->unregister_host(block);
  world.device->register_host(block, kCount);
  CHECK_THROWS(world.device->register_host(static_cast<unsigned char*>(block) + 1, 1), InputError);
}

TEST(a_block_that_another_stream_uses_is_reused_after_it) {
  for (const bool told : {true, false}) {
    World world;
    const StreamView other = world.device->create_stream("compute other");
    void* block = world.device->allocate(kCount, {});
    world.device->record(world.event, {});
    world.device->wait(other, world.event);
    if (told) world.device->note_user(block, other);
    world.device->note_use(block, kCount, other, Use::read);
    world.device->free(block, kCount, {});
    if (!told) {
      CHECK_THROWS(world.device->allocate(kCount, {}), OrderError);
      continue;
    }
    void* second = world.device->allocate(kCount, {});
    CHECK(second != block);
    world.executor->drain();
    CHECK(world.device->allocate(kCount, {}) == block);
    world.device->free(second, kCount, {});
    CHECK(world.device->allocate(kCount, {}) == second);
    world.device->note_user(world.bytes.data(), other);  // not of the pool: nothing to do
  }
}

TEST(no_work_is_issued_on_the_host) {
  World world;
  CHECK_THROWS(world.device->record(world.event, kHostStream), InputError);
  CHECK_THROWS(world.device->copy(world.bytes.data(), world.pinned.data(), 1, kHostStream), InputError);
}
