// Faults of disk and memory at every place they can strike a walk over layers: right bytes or a typed error, nothing
// hangs, and the next walk is right.
#include "csrc/engine/layers.h"

using namespace engine_test;

namespace {

enum class Outcome { right, told };

Outcome try_step(const Runtime& runtime, LayerStore& store, const Model& model) {
  try {
    walk_step(runtime, store, model);
    return Outcome::right;
  } catch (const OrderError&) {
    throw;
  } catch (const Error&) {
    return Outcome::told;
  }
}

// The walk after a fault: its bytes are right, and it costs at most what a first walk does.
void check_recovery(const Runtime& runtime, LayerStore& store, const Model& model) {
  runtime.executor->drain();  // early fetches that are struck already
  runtime.faulty_io->arm({});
  const int64_t before = store.stats().load_count;
  CHECK(try_step(runtime, store, model) == Outcome::right);
  CHECK(store.stats().load_count - before <= 2 * model.layer_count() - store.window_layers());
  runtime.executor->drain();
  CHECK_EQUAL(store.stats().in_flight_count, 0);
}

}  // namespace

TEST(faults_of_the_disk_are_told_to_who_wants_the_layer) {
  const Folder folder;
  const Model model(folder, 3, Layout::packed);
  for (const IoFault fault : {IoFault::io_error, IoFault::truncated, IoFault::corrupt, IoFault::interrupted,
                              IoFault::again, IoFault::short_transfer})
    for (const FaultSpan span : {FaultSpan::once, FaultSpan::persistent}) {
      if (span == FaultSpan::persistent && fault == IoFault::short_transfer) continue;
      int told_count = 0;
      for (int64_t at = 0; at < 14; ++at)
        for (const auto& runtime : all_runtimes(FaultSeam::faulty)) {
          const auto store = make_layer_store(runtime, model, 2, -1, VerifyMode::always);
          runtime->faulty_io->arm({.fault = fault, .at = at, .span = span});
          told_count += try_step(*runtime, *store, model) == Outcome::told;
          check_recovery(*runtime, *store, model);
        }
      const bool is_completed = fault == IoFault::short_transfer ||
                                (span == FaultSpan::once && (fault == IoFault::interrupted || fault == IoFault::again));
      CHECK_EQUAL(told_count == 0, is_completed);
      if (span == FaultSpan::persistent) CHECK(told_count >= 2 * 12);
    }
}

TEST(faults_strike_any_schedule) {
  const Folder folder;
  const Model model(folder, 3, Layout::packed);
  for (uint64_t seed = 0; seed < schedules(300); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}, .faults = FaultSeam::faulty});
    const auto store = make_layer_store(runtime, model, 1 + static_cast<int64_t>(seed) % 3, -1, VerifyMode::always);
    const IoFault fault = seed % 2 == 0 ? IoFault::io_error : IoFault::corrupt;
    runtime->faulty_io->arm({.fault = fault, .at = static_cast<int64_t>(seed / 2) % 16});
    try_step(*runtime, *store, model);
    check_recovery(*runtime, *store, model);
  }
}

TEST(an_early_fetch_that_failed_is_tried_again_when_it_is_wanted) {
  const Folder folder;
  const Model model(folder, 4, Layout::packed);
  for (uint64_t seed = 0; seed < schedules(50); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}, .faults = FaultSeam::faulty});
    const auto store = make_layer_store(runtime, model, 2);
    runtime->faulty_io->arm({.fault = IoFault::io_error, .at = kPartCount, .span = FaultSpan::persistent});
    {
      const LeaseRef lease = store->acquire(0, Visit::forward);
      runtime->executor->drain();  // the fetch of layer 1 fails meanwhile, once
      CHECK_EQUAL(store->stats().load_count, 2);
    }
    runtime->executor->drain();
    CHECK_EQUAL(store->stats().load_count, 2);
    CHECK_THROWS(store->acquire(1, Visit::forward), SpillError);
    runtime->faulty_io->arm({});
    model.check(*store->acquire(1, Visit::forward));
    check_recovery(*runtime, *store, model);
  }
}

TEST(a_wrong_byte_never_leaves_the_store) {
  const Folder folder;
  const Model model(folder, 3, Layout::packed);
  Weights broken = model.weights();
  broken.bytes[static_cast<size_t>(broken.tensors[kPartCount].begin_bytes + 9000)] ^= 1;
  store(broken);
  for (const auto& runtime : all_runtimes()) {
    const auto store = make_layer_store(runtime, model, 2);
    model.check(*store->acquire(0, Visit::forward));
    for (int round = 0; round < 3; ++round) CHECK_THROWS(store->acquire(1, Visit::forward), CorruptionError);
    model.check(*store->acquire(2, Visit::forward));
  }
}

TEST(memory_that_runs_out_is_told_and_tried_again) {
  const Folder folder;
  const Model model(folder, 4, Layout::packed);
  for (int64_t at = 0; at < 4; ++at)
    for (const bool persistent : {false, true})
      for (const auto& runtime : all_runtimes(FaultSeam::faulty)) {
        const auto store = make_layer_store(runtime, model, 3, 3 * layer_slot_bytes(model.layers(runtime)));
        runtime->faulty_memory->arm(at, persistent);
        const Outcome outcome = try_step(*runtime, *store, model);
        CHECK(at > 0 || outcome == Outcome::told);
        CHECK(at < 3 || outcome == Outcome::right);
        runtime->faulty_memory->arm(-1, false);
        check_recovery(*runtime, *store, model);
        CHECK_EQUAL(store->stats().peak_resident_bytes, 3 * store->slot_bytes());
      }
}

// A failing task of somebody else ends a wait; neither the load nor its slot may be lost by that.
TEST(a_foreign_failure_costs_no_slot) {
  const Folder folder;
  const Model model(folder, 4, Layout::packed);
  for (uint64_t seed = 0; seed < schedules(100); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}, .faults = FaultSeam::faulty});
    const auto store = make_layer_store(runtime, model, 1);
    const QueueId foreign = runtime->executor->create_queue("foreign");
    runtime->executor->post(foreign, [] { throw std::runtime_error("foreign"); });
    bool is_foreign_seen = false;
    try {
      model.check(*store->acquire(0, Visit::forward));
    } catch (const std::runtime_error& error) {
      is_foreign_seen = std::string(error.what()) == "foreign";
      CHECK(is_foreign_seen);
    }
    if (!is_foreign_seen) CHECK_THROWS(runtime->executor->drain(), std::runtime_error);
    runtime->executor->destroy_queue(foreign);
    model.check(*store->acquire(3, Visit::forward));
    check_recovery(*runtime, *store, model);
  }
}
