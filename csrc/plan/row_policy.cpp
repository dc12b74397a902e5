// See row_policy.h.
#include "plan/row_policy.h"

#include <deque>
#include <string>

#include "base/error.h"
#include "plan/recency_list.h"

namespace memsys {
namespace {

// Instead of unions of sets: how many of the last sets hold each id. An id leaves when its count falls to 0.
class WindowPolicy final : public RowPolicy {
 public:
  WindowPolicy(int64_t id_count, int64_t set_count, std::span<const int64_t> hot)
      : set_count_(set_count),
        set_counts_(static_cast<size_t>(id_count)),
        is_hot_(static_cast<size_t>(id_count)),
        hot_(hot.empty() ? 0 : id_count) {
    MEMSYS_EXPECT(set_count >= 1, InputError,
                  "a window of " + std::to_string(set_count) +
                      " sets was asked for; the present one is always kept: "
                      "give 1 or more");
    for (const int64_t id : hot) {
      MEMSYS_EXPECT(
          id >= 0 && id < id_count, InputError,
          "the hot set holds row " + std::to_string(id) + "; there are rows 0 to " + std::to_string(id_count - 1));
      is_hot_[static_cast<size_t>(id)] = 1;
    }
  }

  void step(std::span<const int64_t> wanted, int64_t capacity, std::vector<int64_t>& leaving) override {
    history_.emplace_back(wanted.begin(), wanted.end());
    for (const int64_t id : wanted) {
      if (!keeps(id)) ++kept_count_;
      ++set_counts_[static_cast<size_t>(id)];
      if (is_hot_[static_cast<size_t>(id)]) hot_.touch(id);
    }
    operation_count_ += static_cast<int64_t>(wanted.size());
    if (static_cast<int64_t>(history_.size()) > set_count_) drop_oldest_set(leaving);
    for (; kept_count_ > capacity && history_.size() > 1; ++shrink_count_) drop_oldest_set(leaving);
    // What is wanted now is newer than every other hot id, so none of it is reached.
    for (; kept_count_ > capacity; --kept_count_, ++operation_count_) {
      leaving.push_back(hot_.oldest());
      hot_.remove(hot_.oldest());
    }
  }

  void clear() override {
    history_.clear();
    set_counts_.assign(set_counts_.size(), 0);
    hot_.clear();
    kept_count_ = 0;
  }
  bool keeps(int64_t id) const override { return set_counts_[static_cast<size_t>(id)] > 0 || stays_hot(id); }
  int64_t kept_count() const override { return kept_count_; }
  int64_t operation_count() const override { return operation_count_; }
  int64_t shrink_count() const override { return shrink_count_; }

 private:
  bool stays_hot(int64_t id) const { return is_hot_[static_cast<size_t>(id)] && hot_.contains(id); }

  void drop_oldest_set(std::vector<int64_t>& leaving) {
    for (const int64_t id : history_.front()) {
      if (--set_counts_[static_cast<size_t>(id)] > 0 || stays_hot(id)) continue;
      leaving.push_back(id);
      --kept_count_;
    }
    operation_count_ += static_cast<int64_t>(history_.front().size());
    history_.pop_front();
  }

  const int64_t set_count_;
  std::deque<std::vector<int64_t>> history_;  // oldest first
  std::vector<int64_t> set_counts_;           // id -> sets of history_ that hold it
  std::vector<char> is_hot_;
  RecencyList hot_;  // hot ids that came, by last use
  int64_t kept_count_ = 0, operation_count_ = 0, shrink_count_ = 0;
};

class LruPolicy final : public RowPolicy {
 public:
  explicit LruPolicy(int64_t id_count) : ids_(id_count) {}

  void step(std::span<const int64_t> wanted, int64_t capacity, std::vector<int64_t>& leaving) override {
    for (const int64_t id : wanted) ids_.touch(id);
    operation_count_ += static_cast<int64_t>(wanted.size());
    for (; ids_.size() > capacity; ++operation_count_) {
      leaving.push_back(ids_.oldest());
      ids_.remove(ids_.oldest());
    }
  }

  void clear() override { ids_.clear(); }
  bool keeps(int64_t id) const override { return ids_.contains(id); }
  int64_t kept_count() const override { return ids_.size(); }
  int64_t operation_count() const override { return operation_count_; }
  int64_t shrink_count() const override { return 0; }

 private:
  RecencyList ids_;
  int64_t operation_count_ = 0;
};

}  // namespace

std::unique_ptr<RowPolicy> make_window_policy(int64_t id_count, int64_t set_count, std::span<const int64_t> hot) {
  return std::make_unique<WindowPolicy>(id_count, set_count, hot);
}

std::unique_ptr<RowPolicy> make_lru_policy(int64_t id_count) { return std::make_unique<LruPolicy>(id_count); }

}  // namespace memsys
