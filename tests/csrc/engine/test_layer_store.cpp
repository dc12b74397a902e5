// The window of layers: right bytes at every visit on every engine and schedule, exactly as many loads as the window
// promises, never a byte over the budget, and leased memory that nothing touches.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "csrc/engine/layers.h"

using namespace engine_test;

namespace {

int64_t loads_of(LayerStore& store, const std::function<void()>& walk) {
  const int64_t before = store.stats().load_count;
  walk();
  return store.stats().load_count - before;
}

void check_counts(const std::shared_ptr<Runtime>& runtime, const Model& model, int64_t window) {
  const auto store = make_layer_store(runtime, model, window);
  const int64_t layers = model.layer_count();
  const auto step = [&] { walk_step(*runtime, *store, model); };
  const auto pass = [&] { walk_pass(*runtime, *store, model); };
  CHECK_EQUAL(loads_of(*store, step), 2 * layers - window);
  CHECK_EQUAL(loads_of(*store, step), 2 * (layers - window));
  CHECK(loads_of(*store, pass) <= layers - window + 1);
  CHECK_EQUAL(loads_of(*store, step), 2 * (layers - window) + (window == 1 ? 1 : 0));
  CHECK(loads_of(*store, pass) <= layers - window + 1);
  CHECK(loads_of(*store, pass) <= layers - window + 1);
  runtime->executor->drain();
  const LayerStoreStats stats = store->stats();
  CHECK_EQUAL(stats.in_flight_count, 0);
  CHECK_EQUAL(stats.resident_bytes, window * store->slot_bytes());
  CHECK_EQUAL(stats.peak_resident_bytes, window * store->slot_bytes());
  CHECK(stats.read_bytes >= stats.load_count * 24'000);
}

}  // namespace

TEST(layers_come_whole_and_no_more_often_than_promised_under_any_schedule) {
  const Folder folder;
  const Model packed(folder, 4, Layout::packed);
  for (uint64_t seed = 0; seed < schedules(250); ++seed)
    check_counts(make_runtime({.seed = seed, .io = {}}), packed, 1 + static_cast<int64_t>(seed) % 3);
  const Model plain(folder, 5, Layout::plain);
  for (uint64_t seed = 0; seed < schedules(100); ++seed)
    check_counts(make_runtime({.seed = seed, .io = {}}), plain, 1 + static_cast<int64_t>(seed) % 4);
}

TEST(layers_come_whole_and_no_more_often_than_promised_on_every_engine) {
  const Folder folder;
  for (const Layout layout : {Layout::packed, Layout::plain})
    for (const int64_t scale : {1, 150}) {  // 150: 3 MB, several pieces a part
      const Model model(folder, 8, layout, scale);
      for (const auto& runtime : all_runtimes())
        for (const int64_t window : {1, 2, 5}) check_counts(runtime, model, window);
    }
}

TEST(a_window_of_all_layers_loads_each_once) {
  const Folder folder;
  const Model model(folder, 3, Layout::packed);
  const auto runtime = make_runtime({});
  const auto store = make_layer_store(runtime, model, 10);
  CHECK_EQUAL(store->window_layers(), 3);
  for (int round = 0; round < 3; ++round) walk_step(*runtime, *store, model);
  CHECK_EQUAL(store->stats().load_count, 3);
  CHECK(store->stats().hit_count >= 15);
}

TEST(what_comes_next_is_fetched_while_a_layer_is_in_use) {
  const Folder folder;
  const Model model(folder, 6, Layout::packed);
  const auto runtime = make_runtime({});
  const auto store = make_layer_store(runtime, model, 3);
  walk_step(*runtime, *store, model);
  const LeaseRef lease = store->acquire(3, Visit::forward);
  runtime->executor->drain();
  const int64_t hits = store->stats().hit_count, loads = store->stats().load_count;
  const LeaseRef next = store->acquire(4, Visit::forward);
  model.check(*next);
  CHECK_EQUAL(store->stats().hit_count, hits + 1);
  CHECK_EQUAL(store->stats().load_count, loads);
}

TEST(leased_memory_is_left_alone) {
  const Folder folder;
  const Model model(folder, 6, Layout::plain);
  for (uint64_t seed = 0; seed < schedules(60); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}});
    const auto store = make_layer_store(runtime, model, 3);
    const LeaseRef kept = store->acquire(static_cast<int64_t>(seed) % 6, Visit::forward);
    const void* address = kept->part(0).data;
    for (int round = 0; round < 2; ++round) {
      walk_step(*runtime, *store, model);
      model.check(*kept);
    }
    CHECK_EQUAL(kept->part(0).data, address);
    CHECK_EQUAL(store->acquire(kept->layer(), Visit::forward)->part(0).data, address);  // a second lease, no load
    CHECK_EQUAL(store->stats().peak_resident_bytes, 3 * store->slot_bytes());
  }
}

TEST(a_window_whose_every_layer_is_in_use_is_told_and_works_on) {
  const Folder folder;
  const Model model(folder, 5, Layout::packed);
  for (const auto& runtime : all_runtimes()) {
    const auto store = make_layer_store(runtime, model, 2);
    LeaseRef first = store->acquire(0, Visit::forward);
    const LeaseRef second = store->acquire(1, Visit::forward);
    CHECK_THROWS(store->acquire(2, Visit::forward), BudgetError);
    model.check(*first);
    first.reset();
    model.check(*store->acquire(2, Visit::forward));
    model.check(*second);
  }
}

TEST(an_acquire_waits_for_room_that_an_early_fetch_has_taken) {
  const Folder folder;
  const Model model(folder, 5, Layout::packed);
  for (uint64_t seed = 0; seed < schedules(100); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}});
    const auto store = make_layer_store(runtime, model, 2);
    const LeaseRef first = store->acquire(0, Visit::forward);
    while (store->stats().in_flight_count == 0 && runtime->executor->step(1) > 0) continue;  // of layer 1
    model.check(*store->acquire(3, Visit::forward));
    CHECK(store->stats().load_count <= 4);
  }
}

TEST(a_budget_is_kept_to_the_byte) {
  const Folder folder;
  const Model model(folder, 6, Layout::packed);
  const auto runtime = make_runtime({});
  const int64_t slot_bytes = layer_slot_bytes(model.layers(runtime));
  CHECK_EQUAL(slot_bytes, int64_t{28672 + 4096 + 4096});  // the last layer is the largest
  const auto store = make_layer_store(runtime, model, 3, 3 * slot_bytes);
  walk_step(*runtime, *store, model);
  CHECK_EQUAL(store->stats().peak_resident_bytes, 3 * slot_bytes);
  try {
    make_layer_store(runtime, model, 4, 4 * slot_bytes - 1);
    CHECK(false);
  } catch (const BudgetError& error) {
    CHECK(std::string(error.what()).find("where 3 would fit") != std::string::npos);
  }
}

TEST(leases_outlive_store_files_and_runtime) {
  const Folder folder;
  const Model model(folder, 4, Layout::packed);
  for (auto& shared : all_runtimes()) {
    std::shared_ptr<Runtime> runtime = std::move(shared);
    auto store = make_layer_store(runtime, model, 2);
    const LeaseRef lease = store->acquire(1, Visit::forward);
    store.reset();
    runtime.reset();
    model.check(*lease);
  }
}

TEST(a_store_may_be_dropped_while_layers_come) {
  const Folder folder;
  const Model model(folder, 6, Layout::plain, 20);
  for (uint64_t seed = 0; seed < schedules(100); ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}});
    const auto store = make_layer_store(runtime, model, 4);
    store->acquire(0, Visit::forward);
    runtime->executor->step(static_cast<int64_t>(seed) % 12);
  }
  for (int round = 0; round < 20; ++round)
    for (const auto& runtime : all_runtimes()) make_layer_store(runtime, model, 4)->acquire(0, Visit::forward);
}

TEST(threads_may_share_a_store) {
  const Folder folder;
  const Model model(folder, 8, Layout::plain);
  for (const auto choice : {IoEngineChoice::threads, IoEngineChoice::automatic}) {
    const auto runtime = make_runtime({.seed = {}, .io = {.choice = choice}});
    const auto store = make_layer_store(runtime, model, 4);
    std::atomic<int> failure_count{0};
    std::vector<std::thread> threads;
    for (int64_t thread = 0; thread < 4; ++thread)
      threads.emplace_back([&, thread] {
        try {
          for (int64_t turn = 0; turn < 200; ++turn) {
            const int64_t layer = (turn * (thread + 1) + thread) % 8;
            model.check(*store->acquire(layer, turn % 3 == 0 ? Visit::backward : Visit::forward));
          }
        } catch (const std::exception&) {
          ++failure_count;
        }
      });
    for (std::thread& thread : threads) thread.join();
    CHECK_EQUAL(failure_count.load(), 0);
    CHECK_EQUAL(store->stats().peak_resident_bytes, 4 * store->slot_bytes());
  }
}

TEST(a_forked_child_is_told_instead_of_given_zeros) {
  const Folder folder;
  const Model model(folder, 4, Layout::packed);
  const auto runtime = make_runtime({});
  auto store = make_layer_store(runtime, model, 2);
  store->acquire(0, Visit::forward);
  runtime->executor->drain();
  const pid_t child = ::fork();
  if (child == 0) {
    int refused_count = 0;
    for (const int64_t layer : {0, 1, 3}) {  // there, fetched early, absent
      try {
        store->acquire(layer, Visit::forward);
      } catch (const Error&) {
        ++refused_count;
      }
    }
    store.reset();
    ::_exit(refused_count);
  }
  int status = 0;
  CHECK_EQUAL(::waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 3);
  model.check(*store->acquire(0, Visit::forward));
}

TEST(layers_may_have_empty_parts_or_none) {
  const Folder folder;
  const Weights weights = write_weights(folder, {0, 5000}, Layout::packed);
  const auto runtime = make_runtime({});
  const auto file = open_weights(runtime, weights);
  LayerStore store(
      {.runtime = runtime,
       .layers = {{}, {{file, weights.tensors[0].begin_bytes, 0}, {file, weights.tensors[1].begin_bytes, 5000}}},
       .window_layers = 1,
       .device_budget_bytes = -1});
  CHECK_EQUAL(store.acquire(0, Visit::forward)->part_count(), 0);
  const LeaseRef lease = store.acquire(1, Visit::forward);
  CHECK_EQUAL(lease->part(0).bytes, 0);
  CHECK(weights.is_at(1, lease->part(1).data));
}

TEST(stores_that_make_no_sense_are_refused) {
  const Folder folder;
  const Model model(folder, 2, Layout::packed);
  const auto runtime = make_runtime({});
  CHECK_THROWS(make_layer_store(runtime, model, 0), InputError);
  CHECK_THROWS(LayerStore({.runtime = runtime, .layers = {}, .window_layers = 1, .device_budget_bytes = -1}),
               InputError);
  CHECK_THROWS(
      LayerStore({.runtime = runtime, .layers = {{{nullptr, 0, 1}}}, .window_layers = 1, .device_budget_bytes = -1}),
      InputError);
  auto layers = model.layers(runtime);
  layers[1][0].size_bytes += static_cast<int64_t>(model.weights().bytes.size());
  CHECK_THROWS(LayerStore({.runtime = runtime, .layers = layers, .window_layers = 1, .device_budget_bytes = -1}),
               InputError);
  const auto store = make_layer_store(runtime, model, 1);
  CHECK_THROWS(store->acquire(2, Visit::forward), InputError);
  CHECK_THROWS(store->acquire(-1, Visit::forward), InputError);
  CHECK_THROWS(store->acquire(0, Visit::forward)->part(3), InputError);
  const auto simulated = make_runtime({.kind = DeviceKind::simulated, .device_index = 0, .seed = 1, .io = {}});
  CHECK_THROWS(make_layer_store(simulated, model, 1), DeviceError);
}
