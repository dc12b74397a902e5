// The window of rows against a reference that recomputes every union from scratch, over many short seeded runs of each
// policy: the same rows resident, each in a row of its own with its own content after the moves, nothing read that was
// there, and no more work than what changed. A run takes 30,000 steps; MEMSYS_FUZZ_STEPS=1000000 takes a million.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "plan/recency_list.h"
#include "plan/row_window.h"

using namespace memsys;

namespace {

using Ids = std::set<int64_t>;

struct Setting {
  bool is_lru = false;
  int64_t neuron_count = 1, capacity = 1, set_count = 1;
  std::vector<int64_t> hot;
};

// Slow and obvious. `recent` holds ids by last use, the newest last: all of them for LRU, else the hot ones.
class Reference {
 public:
  explicit Reference(Setting setting) : setting_(std::move(setting)) {}

  Ids step(const std::vector<int64_t>& wanted) {
    history_.emplace_back(wanted.begin(), wanted.end());
    for (const int64_t id : wanted) {
      if (!setting_.is_lru && std::count(setting_.hot.begin(), setting_.hot.end(), id) == 0) continue;
      std::erase(recent_, id);
      recent_.push_back(id);
    }
    const auto limit = static_cast<size_t>(setting_.is_lru ? 1 : setting_.set_count);
    while (history_.size() > limit) history_.pop_front();
    while (is_full() && history_.size() > 1 && !setting_.is_lru) history_.pop_front();
    while (is_full()) recent_.erase(recent_.begin());
    return kept();
  }
  void clear() { history_.clear(), recent_.clear(); }

 private:
  bool is_full() const { return kept().size() > static_cast<size_t>(setting_.capacity); }
  Ids kept() const {
    Ids all(recent_.begin(), recent_.end());
    for (const Ids& one : history_) all.insert(one.begin(), one.end());
    return all;
  }

  const Setting setting_;
  std::deque<Ids> history_;
  std::vector<int64_t> recent_;
};

std::unique_ptr<RowPolicy> make_policy(const Setting& setting) {
  if (setting.is_lru) return make_lru_policy(setting.neuron_count);
  return make_window_policy(setting.neuron_count, setting.set_count, setting.hot);
}

class Run {
 public:
  explicit Run(uint64_t seed)
      : random_(seed),
        setting_(sample()),
        window_(setting_.neuron_count, setting_.capacity, make_policy(setting_)),
        reference_(setting_),
        content_(static_cast<size_t>(setting_.capacity), -1) {}

  void step() {
    const std::vector<int64_t> wanted = sample_wanted();
    if (static_cast<int64_t>(wanted.size()) > setting_.capacity) {
      CHECK_THROWS(window_.step(wanted), BudgetError);
      return check(resident_);
    }
    if (below(200) == 0) {
      window_.clear();
      reference_.clear();
      resident_.clear();
      check({});
    }
    const Ids after = reference_.step(wanted);
    const RowChange& change = window_.step(wanted);
    apply(change, after);
    wanted_count_ += static_cast<int64_t>(wanted.size());
    resident_ = after;
    check(after);
  }

  int64_t shrink_count() const { return window_.stats().shrink_count; }
  int64_t move_count() const { return window_.stats().move_count; }

 private:
  int64_t below(int64_t bound) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(bound)); }

  Setting sample() {
    Setting setting;
    setting.neuron_count = 1 + below(40);
    setting.capacity = 1 + below(setting.neuron_count);
    setting.set_count = 1 + below(6);
    setting.is_lru = below(4) == 0;
    const int64_t hot_share = below(2) * below(60);
    for (int64_t id = 0; id < setting.neuron_count; ++id)
      if (below(100) < hot_share) setting.hot.push_back(id);
    share_ = 1 + below(100);
    return setting;
  }

  // Each id is active for a while, as neurons are; now and then all of them, or none, or more than there is room for.
  std::vector<int64_t> sample_wanted() {
    const int64_t kind = below(40);
    std::vector<int64_t> wanted;
    const int64_t room = below(8) == 0 ? setting_.neuron_count : setting_.capacity;
    for (int64_t id = 0; id < setting_.neuron_count && static_cast<int64_t>(wanted.size()) < room; ++id) {
      const bool was = last_.contains(id);
      const bool is = kind == 0 || (kind > 1 && below(100) < (was ? 60 : share_ / 3));
      if (is) wanted.push_back(id);
    }
    last_ = Ids(wanted.begin(), wanted.end());
    return wanted;
  }

  void apply(const RowChange& change, const Ids& after) {
    for (const RowMove& move : change.moves) {
      CHECK(move.source_row >= window_.resident_count() && move.target_row < window_.resident_count());
      CHECK_EQUAL(resident_.count(content_.at(static_cast<size_t>(move.source_row))), size_t{1});
      content_.at(static_cast<size_t>(move.target_row)) = content_.at(static_cast<size_t>(move.source_row));
      content_.at(static_cast<size_t>(move.source_row)) = -1;
    }
    Ids arrived;
    for (const RowArrival& arrival : change.arrivals) {
      CHECK(resident_.count(arrival.neuron) == 0 && after.count(arrival.neuron) == 1);
      CHECK(arrived.empty() || arrival.neuron > *arrived.rbegin());
      arrived.insert(arrival.neuron);
      content_.at(static_cast<size_t>(arrival.row)) = arrival.neuron;
    }
    int64_t drop_count = 0, arrival_count = 0;
    for (const int64_t id : resident_) drop_count += after.count(id) == 0 ? 1 : 0;
    for (const int64_t id : after) arrival_count += resident_.count(id) == 0 ? 1 : 0;
    CHECK_EQUAL(static_cast<int64_t>(change.arrivals.size()), arrival_count);
    CHECK(static_cast<int64_t>(change.moves.size()) <= std::max<int64_t>(drop_count - arrival_count, 0));
    drop_count_ += drop_count;
  }

  void check(const Ids& resident) const {
    window_.check_invariants();
    CHECK_EQUAL(window_.resident_count(), static_cast<int64_t>(resident.size()));
    for (const int64_t id : resident) {
      const int64_t row = window_.row_of(id);
      CHECK(row >= 0 && row < window_.resident_count());
      CHECK_EQUAL(content_.at(static_cast<size_t>(row)), id);
    }
    const RowWindowStats stats = window_.stats();
    CHECK_EQUAL(stats.drop_count, drop_count_);
    CHECK(stats.move_count <= stats.drop_count);
    // An id is looked at when it is wanted, when its set leaves, and when it is evicted; never while it just stays.
    CHECK(stats.set_operation_count <= 2 * wanted_count_ + stats.drop_count);
  }

  std::mt19937_64 random_;
  int64_t share_ = 1;
  const Setting setting_;
  RowWindow window_;
  Reference reference_;
  std::vector<int64_t> content_;  // row -> the neuron whose bytes would lie there
  Ids resident_, last_;
  int64_t wanted_count_ = 0, drop_count_ = 0;
};

int64_t asked_steps() {
  const char* text = std::getenv("MEMSYS_FUZZ_STEPS");
  return text == nullptr ? 30'000 : std::stoll(text);
}

}  // namespace

TEST(row_window_agrees_with_recomputed_unions) {
  constexpr int64_t kRunSteps = 100;
  int64_t shrink_count = 0, move_count = 0;
  const int64_t run_count = std::max<int64_t>(asked_steps() / kRunSteps, 1);
  for (int64_t seed = 0; seed < run_count; ++seed) {
    Run run(static_cast<uint64_t>(seed));
    try {
      for (int64_t step = 0; step < kRunSteps; ++step) run.step();
    } catch (const check::Failure&) {
      std::printf("     seed %lld\n", static_cast<long long>(seed));
      throw;
    }
    shrink_count += run.shrink_count();
    move_count += run.move_count();
  }
  std::printf("     %lld steps\n", static_cast<long long>(run_count * kRunSteps));
  CHECK(shrink_count > 0 && move_count > 0);  // else no run met a full window, or one that shrank
}

TEST(row_window_moves_the_last_rows_into_the_places_of_those_that_leave) {
  RowWindow window(10, 8, make_window_policy(10, 1));
  window.step(std::vector<int64_t>{0, 1, 2, 3, 4, 5});
  const RowChange& change = window.step(std::vector<int64_t>{0, 2, 4, 9});  // 1, 3 and 5 leave, 9 comes
  CHECK_EQUAL(change.arrivals.size(), size_t{1});
  CHECK_EQUAL(change.arrivals[0].row, int64_t{1});
  CHECK_EQUAL(change.moves.size(), size_t{1});  // row 5 was the last and just ends; row 4 moves to row 3
  CHECK_EQUAL(change.moves[0].source_row, int64_t{4});
  CHECK_EQUAL(change.moves[0].target_row, int64_t{3});
  CHECK_EQUAL(window.resident_count(), int64_t{4});
  window.check_invariants();
}

TEST(row_window_moves_each_row_once) {
  RowWindow window(20, 20, make_window_policy(20, 1));
  window.step(std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  const RowChange& change = window.step(std::vector<int64_t>{6, 8});  // rows 6 and 8 stay, of ten
  CHECK_EQUAL(change.moves.size(), size_t{2});
  CHECK_EQUAL(change.moves[0].source_row, int64_t{8});
  CHECK_EQUAL(change.moves[0].target_row, int64_t{0});
  CHECK_EQUAL(change.moves[1].source_row, int64_t{6});
  CHECK_EQUAL(change.moves[1].target_row, int64_t{1});
  window.check_invariants();
}

TEST(row_window_shrinks_and_grows_again) {
  RowWindow window(10, 4, make_window_policy(10, 3));
  window.step(std::vector<int64_t>{0, 1});
  window.step(std::vector<int64_t>{2, 3});
  window.step(std::vector<int64_t>{4});  // 5 rows of three sets: the oldest set goes early
  CHECK_EQUAL(window.stats().shrink_count, int64_t{1});
  CHECK_EQUAL(window.resident_count(), int64_t{3});
  window.step(std::vector<int64_t>{4});
  CHECK_EQUAL(window.resident_count(), int64_t{3});  // three sets again: {2, 3}, {4}, {4}
  window.step({});
  CHECK_EQUAL(window.resident_count(), int64_t{1});
}

TEST(row_window_keeps_hot_rows_once_they_came_until_room_is_wanted) {
  const std::vector<int64_t> hot{7, 8};
  RowWindow window(10, 4, make_window_policy(10, 1, hot));
  window.step(std::vector<int64_t>{1, 7});
  CHECK(window.row_of(8) < 0);
  window.step(std::vector<int64_t>{2, 8});
  CHECK(window.row_of(1) < 0 && window.row_of(7) >= 0 && window.row_of(8) >= 0);
  window.step(std::vector<int64_t>{1, 2, 3});  // room for one hot row: the one wanted last
  CHECK(window.row_of(7) < 0 && window.row_of(8) >= 0);
  CHECK_THROWS(window.step(std::vector<int64_t>{0, 1, 2, 3, 4}), BudgetError);
  CHECK_EQUAL(window.resident_count(), int64_t{4});
  window.check_invariants();
}

TEST(row_window_refuses_nonsense) {
  CHECK_THROWS(RowWindow(4, 5, make_lru_policy(4)), InputError);
  CHECK_THROWS(RowWindow(4, 0, make_lru_policy(4)), InputError);
  CHECK_THROWS(make_window_policy(4, 0), InputError);
  CHECK_THROWS(make_window_policy(4, 1, std::vector<int64_t>{4}), InputError);
  RowWindow window(4, 4, make_lru_policy(4));
  CHECK_THROWS(window.step(std::vector<int64_t>{1, 1}), InputError);
  CHECK_THROWS(window.step(std::vector<int64_t>{2, 1}), InputError);
  CHECK_THROWS(window.step(std::vector<int64_t>{-1}), InputError);
  CHECK_THROWS(window.step(std::vector<int64_t>{4}), InputError);
  CHECK_EQUAL(window.resident_count(), int64_t{0});
  window.check_invariants();
}

TEST(recency_list_gives_the_oldest) {
  RecencyList list(4);
  for (const int64_t id : {3, 1, 2, 3}) list.touch(id);
  CHECK_EQUAL(list.size(), int64_t{3});
  CHECK_EQUAL(list.oldest(), int64_t{1});
  list.remove(2);
  list.remove(1);
  CHECK_EQUAL(list.oldest(), int64_t{3});
  list.clear();
  CHECK(list.size() == 0 && !list.contains(3));
}
