// The swap protocol under the simulation: right, it passes for every seed; with any one edge missing, it is an error
// for every seed, whether the schedule runs the lanes late or early.
#include <cstring>
#include <vector>

#include "csrc/device/devices.h"

namespace {

using namespace memsys;

constexpr int64_t kCount = 4096;

enum class Missing { nothing, producer, source_free, own_copy_out, allocation, consumer, pinned_reuse };
enum class Source { freed_early, held };

struct Swap {
  explicit Swap(uint64_t seed)
      : executor(make_seeded_executor(seed)), device(make_simulated_device(executor)), eager(seed % 2 == 1) {
    out = device->create_stream("lane out");
    in = device->create_stream("lane in");
    for (EventId* event : {&produced, &copied, &fresh, &loaded}) *event = device->create_event();
  }

  void breathe() {
    if (eager) executor->step(100);
  }
  unsigned char* make(unsigned char value) {
    auto* block = static_cast<unsigned char*>(device->allocate(kCount, {}));
    std::memset(block, value, kCount);
    device->note_use(block, kCount, {}, Use::write);
    breathe();
    return block;
  }
  void link(EventId event, StreamView from, StreamView to, bool wanted) {
    device->record(event, from);
    breathe();
    if (wanted) device->wait(to, event);
  }

  // One activation out and in again, without the edge that is missing.
  void run(unsigned char value, Missing missing, Source source) {
    unsigned char* tensor = make(value);
    link(produced, {}, out, missing != Missing::producer);
    device->copy(pinned.data(), tensor, kCount, out);
    link(copied, out, {}, source == Source::freed_early && missing != Missing::source_free);
    if (source == Source::freed_early) device->free(tensor, kCount, {});
    unsigned char* later = make(static_cast<unsigned char>(value + 1));

    auto* target = static_cast<unsigned char*>(device->allocate(kCount, {}));
    link(fresh, {}, in, missing != Missing::allocation);
    if (missing != Missing::own_copy_out) device->wait(in, copied);
    device->copy(target, pinned.data(), kCount, in);
    link(loaded, in, {}, missing != Missing::consumer);
    device->note_use(target, kCount, {}, Use::read);
    CHECK(std::vector<unsigned char>(target, target + kCount) == std::vector<unsigned char>(kCount, value));

    if (missing != Missing::pinned_reuse) device->wait(out, loaded);
    device->fill(pinned.data(), 0, kCount, out);
    if (source == Source::held) device->free(tensor, kCount, {});
    device->free(later, kCount, {});
    device->free(target, kCount, {});
  }

  void finish() {
    for (const StreamView stream : {out, in, StreamView{}}) {
      device->record(copied, stream);
      device->synchronize(copied);
    }
  }

  std::vector<unsigned char> pinned = std::vector<unsigned char>(kCount);
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Device> device;
  bool eager;
  StreamView out, in;
  EventId produced, copied, fresh, loaded;
};

void check_caught(Missing missing, Source source, const std::string& named) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Swap swap(seed);
    std::string message;
    try {
      swap.run(1, missing, source);
      swap.finish();
    } catch (const OrderError& error) {
      message = error.what();
    }
    if (message.find(named) == std::string::npos)
      check::fail(__FILE__, __LINE__, "seed " + std::to_string(seed) + " missed it or told: " + message);
  }
}

}  // namespace

TEST(the_right_protocol_passes_for_200_seeds) {
  for (uint64_t seed = 0; seed < 200; ++seed)
    for (const Source source : {Source::freed_early, Source::held}) {
      Swap swap(seed);
      for (unsigned char round = 0; round < 8; ++round) swap.run(round, Missing::nothing, source);
      swap.finish();
    }
}

TEST(a_copy_out_that_does_not_wait_for_the_producer) {
  check_caught(Missing::producer, Source::freed_early, "a copy's read on stream 'lane out'");
}

TEST(a_source_freed_before_its_copy_out) {
  check_caught(Missing::source_free, Source::freed_early, "free on stream 0");
}

TEST(a_swap_in_that_does_not_wait_for_its_own_copy_out) {
  check_caught(Missing::own_copy_out, Source::held, "a copy's read on stream 'lane in'");
}

TEST(a_lane_that_writes_a_fresh_block_too_early) {
  check_caught(Missing::allocation, Source::freed_early, "after allocation on stream 0");
  check_caught(Missing::allocation, Source::held, "after allocation on stream 0");
}

TEST(a_consumer_that_does_not_wait_for_the_copy_in) {
  check_caught(Missing::consumer, Source::freed_early, "an operation's read on stream 0");
}

TEST(a_pinned_block_reused_before_its_reader_ended) {
  check_caught(Missing::pinned_reuse, Source::freed_early, "a fill on stream 'lane out'");
}

TEST(without_the_edge_the_bytes_would_be_wrong_on_some_seed) {
  // The clocks aside: the schedules do differ, and some run the copy before its producer's bytes are there.
  int early = 0, late = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const auto executor = make_seeded_executor(seed);
    const auto device = make_host_device(executor);
    unsigned char source = 0, target = 0;
    const StreamView writer = device->create_stream("writer"), reader = device->create_stream("reader");
    device->fill(&source, 1, 1, writer);
    device->copy(&target, &source, 1, reader);
    executor->drain();
    ++(target == 1 ? late : early);
  }
  CHECK(early > 5 && late > 5);
}
