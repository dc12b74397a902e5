// The order of transfers, on the simulated accelerator: the right life of a tensor passes on 200 schedules, and
// without any one of the engine's edges it is an OrderError on every one of them.
#include <vector>

#include "csrc/engine/deaf_device.h"
#include "csrc/engine/rig.h"

using namespace engine_test;

namespace {

// How the torch side parts with a source: its stream waits for the copy, or it holds the source until it has left.
enum class Source { ordered, held, kept };

struct Life {
  Tier tier = Tier::pageable;
  Source source = Source::ordered;
  int64_t bytes = 4099;
};

struct Simulation {
  explicit Simulation(uint64_t seed, HostCheck check = HostCheck::off)
      : options{.kind = DeviceKind::simulated, .seed = seed, .host_check = check},
        rig(options),
        device(std::make_shared<DeafDevice>(rig.runtime->device)),
        eager(seed % 3 == 1) {
    rig.open(options, device);
  }

  ~Simulation() {
    for (int attempt = 0; attempt < 3; ++attempt) try {
        device->settle();
        return;
      } catch (const OrderError&) {  // what a dropped edge did, which the test has seen already
      }
  }
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  // A torch operation on stream 0 that makes a tensor; some schedules let the executor run in between.
  std::unique_ptr<DeviceBlock> make(const Block& bytes, int64_t count) {
    auto tensor = std::make_unique<DeviceBlock>(device, count);
    std::memcpy(tensor->data(), bytes.data(), static_cast<size_t>(count));
    device->note_use(tensor->data(), count, {}, Use::write);
    breathe();
    return tensor;
  }
  void breathe() const {
    if (eager) rig.runtime->executor->step(3);
  }

  BlockRef put_away(const Block& wanted, const Life& life) {
    auto tensor = make(wanted, life.bytes);
    const void* source = tensor->data();
    if (life.source == Source::kept) kept.push_back(std::move(tensor));
    const BlockRef block = rig.store->swap_out(source, life.bytes, {}, life.tier);
    if (life.source == Source::ordered) CHECK(rig.store->order_source(block, {}));
    if (life.source == Source::held) rig.wait(block->left);
    return block;
  }

  void bring_back(const BlockRef& block, const Block& wanted) {
    const DeviceBlock target(device, block->bytes);
    const ArrivalRef arrival = rig.store->swap_in(block, target.data(), {});
    breathe();
    rig.store->arrive(arrival, {});
    device->note_use(target.data(), block->bytes, {}, Use::read);
    CHECK(holds(target.data(), wanted, block->bytes));
  }

  void live(const Life& life, uint64_t salt) {
    const Block wanted = pattern(life.bytes, salt);
    bring_back(put_away(wanted, life), wanted);
  }

  RigOptions options;
  Rig rig;
  std::shared_ptr<DeafDevice> device;
  bool eager;
  std::vector<std::unique_ptr<DeviceBlock>> kept;
};

// The message of the OrderError that a life without one edge ends with; empty if it went unnoticed.
std::string told_without(uint64_t seed, const Life& life, int wait, int gate) {
  Simulation simulation(3 * seed, HostCheck::off);  // no steps in between: the host learns nothing by chance
  simulation.device->miss_wait(wait);
  simulation.device->miss_gate(gate);
  try {
    simulation.live(life, seed);
    simulation.live(life, seed + 1);
    simulation.rig.store->drain();
  } catch (const OrderError& error) {
    return error.what();
  }
  return "";
}

void check_told(const Life& life, int wait, int gate, const std::string& named) {
  for (uint64_t seed = 0; seed < schedules(40); ++seed) {
    const std::string message = told_without(seed, life, wait, gate);
    if (message.find(named) == std::string::npos)
      check::fail(__FILE__, __LINE__, "seed " + std::to_string(seed) + " missed it or told: " + message);
  }
}

// The order in which one life calls wait().
constexpr int kProducerWait = 0, kSourceWait = 1, kAllocationWait = 2, kCopiedOutWait = 3, kConsumerWait = 4;

}  // namespace

TEST(every_life_passes_on_200_schedules) {
  for (uint64_t seed = 0; seed < schedules(200); ++seed) {
    Simulation simulation(seed, seed % 2 == 0 ? HostCheck::off : HostCheck::checksum);
    for (const Tier tier : {Tier::pageable, Tier::file})
      for (const Source source : {Source::ordered, Source::held, Source::kept})
        for (const int64_t bytes : {int64_t{1}, int64_t{4099}})
          simulation.live({tier, source, bytes}, seed + static_cast<uint64_t>(bytes));
    simulation.rig.store->drain();
    CHECK_EQUAL(simulation.rig.store->stats().in_flight_bytes, 0);
    CHECK_EQUAL(simulation.rig.store->device_budget().used_bytes(), 0);
    CHECK_EQUAL(simulation.rig.store->spill_used_bytes(), 0);
  }
}

TEST(a_forward_and_its_backward_pass_on_200_schedules) {
  constexpr uint64_t kLayers = 6;
  for (uint64_t seed = 0; seed < schedules(200); ++seed) {
    Simulation simulation(seed);
    std::vector<BlockRef> saved;
    for (uint64_t layer = 0; layer < kLayers; ++layer) {
      const Life life{layer % 2 == 0 ? Tier::file : Tier::pageable, layer % 3 == 0 ? Source::kept : Source::ordered};
      saved.push_back(simulation.put_away(pattern(life.bytes, layer), life));
      if (layer == 2) simulation.breathe();
    }
    for (uint64_t layer = kLayers; layer-- > 0;) {
      simulation.bring_back(saved[layer], pattern(saved[layer]->bytes, layer));
      if (layer == 3) simulation.bring_back(saved[layer], pattern(saved[layer]->bytes, layer));
      saved.pop_back();
    }
    simulation.rig.store->drain();
    CHECK_EQUAL(simulation.rig.store->host_arena().stats().used_bytes, 0);
  }
}

TEST(large_tensors_pass_in_several_pieces) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Simulation simulation(seed);
    for (const Tier tier : {Tier::pageable, Tier::file})
      simulation.live({tier, Source::ordered, (int64_t{9} << 20) + 1}, seed);
  }
}

TEST(a_life_makes_the_edges_that_the_mutants_drop) {
  Simulation simulation(0);
  simulation.live({}, 1);
  CHECK_EQUAL(simulation.device->wait_count(), 5);
  CHECK_EQUAL(simulation.device->gate_count(), 2);
  for (const Tier tier : {Tier::pageable, Tier::file}) CHECK(told_without(0, {tier, Source::ordered}, -1, -1).empty());
}

TEST(a_copy_out_without_its_producer_is_told) {
  for (const Tier tier : {Tier::pageable, Tier::file})
    check_told({tier}, kProducerWait, -1, "a copy's read on stream 'out'");
}

TEST(a_source_reused_before_its_copy_is_told) {
  for (const Tier tier : {Tier::pageable, Tier::file}) check_told({tier}, kSourceWait, -1, "free on stream 0");
}

TEST(a_copy_in_that_does_not_wait_for_the_allocation_is_told) {
  for (const Tier tier : {Tier::pageable, Tier::file})
    check_told({tier}, kAllocationWait, -1, "a copy's write on stream 'in'");
}

TEST(a_copy_in_that_does_not_wait_for_its_copy_out_is_told) {
  // The source is kept, so that no other edge orders the two; it makes one wait less.
  check_told({Tier::pageable, Source::kept}, kCopiedOutWait - 1, -1, "a copy's read on stream 'in'");
}

TEST(a_consumer_that_does_not_wait_for_the_copy_in_is_told) {
  for (const Tier tier : {Tier::pageable, Tier::file})
    check_told({tier}, kConsumerWait, -1, "an operation's read on stream 0");
}

TEST(a_file_written_before_the_copy_out_is_told) {
  for (uint64_t seed = 0; seed < schedules(40); ++seed) {
    Simulation simulation(3 * seed);
    simulation.device->miss_gate(0);
    simulation.put_away(pattern(4099, seed), {Tier::file, Source::kept});
    CHECK_THROWS(simulation.rig.store->drain(), OrderError);
  }
}

TEST(host_memory_reused_before_its_reader_ended_is_told) {
  for (uint64_t seed = 0; seed < schedules(40); ++seed) {
    Simulation simulation(3 * seed);
    const Block wanted = pattern(4099, seed);
    BlockRef block = simulation.put_away(wanted, {Tier::pageable, Source::held});
    simulation.device->miss_gate(0);
    simulation.kept.push_back(std::make_unique<DeviceBlock>(simulation.device, 4099));
    const ArrivalRef arrival = simulation.rig.store->swap_in(block, simulation.kept.back()->data(), {});
    simulation.rig.wait(arrival->done);
    block.reset();
    arrival->block.reset();
    CHECK_THROWS(simulation.put_away(wanted, {Tier::pageable, Source::kept}), OrderError);
  }
}
