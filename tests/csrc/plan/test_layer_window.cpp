// The window's loads, counted over simulated walks with fetches made as early or as late as chance has it, against the
// formulas, against the best that any choice of victims could do, and under leases that hold slots longer.
#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "csrc/check.h"
#include "plan/layer_window.h"

using namespace memsys;

namespace {

// A store without bytes: loads end at once.
class Walker {
 public:
  Walker(int64_t layer_count, int64_t slot_count, uint64_t seed)
      : layer_count_(layer_count), slots_(static_cast<size_t>(slot_count)), random_(seed) {}

  void visit(int64_t layer, Visit visit) {
    const WalkPosition at{layer, visit};
    if (find(layer) == slots_.end()) {
      const auto slot = choose_slot(layer_count_, at, slots_);
      CHECK(slot.has_value());
      load(*slot, layer);
    }
    find(layer)->use = SlotUse::held;
    fetch_some(at);
    find(layer)->use = SlotUse::idle;
    fetch_some(at);
  }
  int64_t step() {
    return count([&] {
      for (int64_t layer = 0; layer < layer_count_; ++layer) visit(layer, Visit::forward);
      for (int64_t layer = layer_count_; layer-- > 0;) visit(layer, Visit::backward);
    });
  }
  int64_t pass() {
    return count([&] {
      for (int64_t layer = 0; layer < layer_count_; ++layer) visit(layer, Visit::forward_only);
    });
  }
  int64_t early_count() const { return early_count_; }

 private:
  std::vector<WindowSlot>::iterator find(int64_t layer) {
    return std::find_if(slots_.begin(), slots_.end(), [&](const WindowSlot& slot) { return slot.layer == layer; });
  }
  void load(int64_t slot, int64_t layer) {
    CHECK(slots_.at(static_cast<size_t>(slot)).use == SlotUse::idle);
    CHECK(find(layer) == slots_.end());
    slots_[static_cast<size_t>(slot)].layer = layer;
    ++load_count_;
  }
  void fetch_some(const WalkPosition& at) {
    for (uint64_t left = random_() % 4; left > 0; --left) {
      const auto fetch = choose_fetch(layer_count_, at, slots_);
      if (!fetch) return;
      CHECK(slots_.at(static_cast<size_t>(fetch->slot)).layer != at.layer);
      load(fetch->slot, fetch->layer);
      ++early_count_;
    }
  }
  template <typename Walk>
  int64_t count(Walk walk) {
    const int64_t before = load_count_;
    walk();
    return load_count_ - before;
  }

  int64_t layer_count_;
  std::vector<WindowSlot> slots_;
  std::mt19937_64 random_;
  int64_t load_count_ = 0, early_count_ = 0;
};

template <typename Body>
void for_all_windows(Body body) {
  for (const int64_t layer_count : {1, 2, 3, 8, 32})
    for (int64_t slot_count = 1; slot_count <= layer_count; ++slot_count)
      for (uint64_t seed = 0; seed < 5; ++seed) body(layer_count, slot_count, seed);
}

// The fewest loads that serve `walk`, over every choice of victims.
int64_t least_loads(const std::vector<int64_t>& walk, int64_t slot_count) {
  std::map<uint32_t, int64_t> best{{0U, 0}};  // by the set of layers kept
  for (const int64_t layer : walk) {
    const uint32_t wanted = 1U << layer;
    std::map<uint32_t, int64_t> next;
    const auto offer = [&](uint32_t kept, int64_t loads) {
      const auto [found, is_new] = next.emplace(kept, loads);
      if (!is_new) found->second = std::min(found->second, loads);
    };
    for (const auto& [kept, loads] : best) {
      if ((kept & wanted) != 0) {
        offer(kept, loads);
        continue;
      }
      if (__builtin_popcount(kept) < slot_count) offer(kept | wanted, loads + 1);
      for (uint32_t rest = kept; rest != 0; rest &= rest - 1) offer((kept & ~(rest & -rest)) | wanted, loads + 1);
    }
    best = std::move(next);
  }
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const auto& [kept, loads] : best) least = std::min(least, loads);
  return least;
}

}  // namespace

TEST(uses_come_in_the_order_of_the_walk) {
  for (const int64_t count : {1, 2, 5}) {
    const auto walk_after = [&](const WalkPosition& at) {
      std::vector<int64_t> walk;
      if (at.visit == Visit::forward) {
        for (int64_t layer = at.layer + 1; layer < count; ++layer) walk.push_back(layer);
        for (int64_t layer = count; layer-- > 0;) walk.push_back(layer);
      } else if (at.visit == Visit::backward) {
        for (int64_t layer = at.layer; layer-- > 0;) walk.push_back(layer);
        for (int64_t layer = 0; layer < count; ++layer) walk.push_back(layer);
      } else {
        for (int64_t step = 1; step <= count; ++step) walk.push_back((at.layer + step) % count);
      }
      return walk;
    };
    for (const Visit visit : {Visit::forward, Visit::backward, Visit::forward_only})
      for (int64_t present = 0; present < count; ++present)
        for (int64_t layer = 0; layer < count; ++layer) {
          const auto walk = walk_after({present, visit});
          const auto found = std::find(walk.begin(), walk.end(), layer);
          CHECK_EQUAL(next_use(count, {present, visit}, layer), found - walk.begin() + 1);
        }
  }
}

TEST(a_training_step_loads_what_does_not_fit_and_nothing_twice) {
  for_all_windows([](int64_t layers, int64_t slots, uint64_t seed) {
    Walker walker(layers, slots, seed);
    CHECK_EQUAL(walker.step(), 2 * layers - slots);
    for (int step = 0; step < 5; ++step) CHECK_EQUAL(walker.step(), 2 * (layers - slots));
    // One slot ends an evaluation with the last layer in it, and the step begins with the first.
    const int64_t extra = slots == 1 && layers > 1 ? 1 : 0;
    for (int round = 0; round < 3; ++round) {
      walker.pass();
      CHECK_EQUAL(walker.step(), 2 * (layers - slots) + extra);
      CHECK_EQUAL(walker.step(), 2 * (layers - slots));
    }
    for (int pass = 0; pass < 6; ++pass) walker.pass();
    CHECK(walker.step() <= 2 * (layers - slots) + 1);
    CHECK_EQUAL(walker.step(), 2 * (layers - slots));
  });
}

TEST(a_pass_of_generation_loads_at_most_one_more_than_does_not_fit) {
  for_all_windows([](int64_t layers, int64_t slots, uint64_t seed) {
    Walker walker(layers, slots, seed);
    CHECK_EQUAL(walker.pass(), layers);
    for (int pass = 0; pass < 20; ++pass) CHECK(walker.pass() <= layers - slots + 1);
    walker.step();
    for (int pass = 0; pass < 20; ++pass) CHECK(walker.pass() <= layers - slots + 1);
  });
}

TEST(fetches_are_made_early_where_there_is_room_for_them) {
  Walker narrow(8, 1, 1), wide(8, 3, 1);
  for (int step = 0; step < 3; ++step) narrow.step(), wide.step();
  CHECK_EQUAL(narrow.early_count(), 0);
  CHECK(wide.early_count() > 10);
}

TEST(no_choice_of_victims_loads_less) {
  for (int64_t layers = 1; layers <= 6; ++layers)
    for (int64_t slots = 1; slots <= layers; ++slots) {
      std::vector<int64_t> there_and_back, round;
      for (int64_t layer = 0; layer < layers; ++layer) there_and_back.push_back(layer), round.push_back(layer);
      for (int64_t layer = layers; layer-- > 0;) there_and_back.push_back(layer);
      std::vector<int64_t> training, generation;
      for (int step = 0; step < 3; ++step) {
        training.insert(training.end(), there_and_back.begin(), there_and_back.end());
        generation.insert(generation.end(), round.begin(), round.end());
      }
      for (uint64_t seed = 0; seed < 4; ++seed) {
        Walker trainer(layers, slots, seed), generator(layers, slots, seed);
        CHECK_EQUAL(trainer.step() + trainer.step() + trainer.step(), least_loads(training, slots));
        CHECK_EQUAL(generator.pass() + generator.pass() + generator.pass(), least_loads(generation, slots));
      }
    }
}

TEST(held_and_present_layers_stay) {
  // Visiting 3 on the way there: 0 is needed last, then 1, 2 and 3.
  std::vector<WindowSlot> slots{{2}, {0}, {3}};
  const WalkPosition at{3, Visit::forward};
  CHECK(choose_fetch(8, at, slots) == (WindowFetch{4, 1}));
  slots[1].use = SlotUse::held;
  CHECK(!choose_fetch(8, at, slots));  // 2 would be missed sooner than 0: wait until that is free
  CHECK_EQUAL(choose_slot(8, {5, Visit::forward}, slots).value(), 0);  // what is wanted now goes where it can
  slots[0].use = slots[2].use = SlotUse::held;
  CHECK(!choose_slot(8, {5, Visit::forward}, slots));
  // The present layer is needed last, though its lease is gone.
  CHECK(!choose_fetch(8, {7, Visit::backward}, std::vector<WindowSlot>{{7}, {6}}));
  CHECK(choose_fetch(8, {6, Visit::backward}, std::vector<WindowSlot>{{7}, {6}}) == (WindowFetch{5, 0}));
  // What is kept is needed sooner than what is absent.
  CHECK(!choose_fetch(8, {0, Visit::backward}, std::vector<WindowSlot>{{0}, {1}}));
  CHECK(choose_fetch(8, {0, Visit::forward}, std::vector<WindowSlot>{{0}, {}, {1}}) == (WindowFetch{2, 1}));
}
