// See row_window.h.
#include "plan/row_window.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace memsys {

RowWindow::RowWindow(int64_t neuron_count, int64_t capacity_rows, std::unique_ptr<RowPolicy> policy)
    : policy_(std::move(policy)) {
  MEMSYS_EXPECT(neuron_count >= 1 && capacity_rows >= 1 && capacity_rows <= neuron_count, InputError,
                "a window of " + std::to_string(capacity_rows) + " rows over " + std::to_string(neuron_count) +
                    " neurons was asked for; give 1 row or more, and no more rows than neurons");
  row_of_.assign(static_cast<size_t>(neuron_count), -1);
  neuron_of_.assign(static_cast<size_t>(capacity_rows), -1);
}

void RowWindow::check_wanted(std::span<const int64_t> wanted) const {
  int64_t last = -1;
  for (const int64_t neuron : wanted) {
    MEMSYS_EXPECT(neuron > last && neuron < neuron_count(), InputError,
                  "neuron " + std::to_string(neuron) + " was wanted after " + std::to_string(last) + ", of " +
                      std::to_string(neuron_count()) + "; give ids that ascend strictly from 0");
    last = neuron;
  }
  MEMSYS_EXPECT(static_cast<int64_t>(wanted.size()) <= capacity_rows(), BudgetError,
                std::to_string(wanted.size()) + " rows are active in one step, and the window has room for " +
                    std::to_string(capacity_rows()) +
                    "; give it a larger capacity_rows or device_budget, or fewer tokens a step");
}

void RowWindow::place(int64_t neuron, int64_t row) {
  row_of_[static_cast<size_t>(neuron)] = row;
  neuron_of_[static_cast<size_t>(row)] = neuron;
}

const RowChange& RowWindow::step(std::span<const int64_t> wanted) {
  check_wanted(wanted);
  change_.moves.clear();
  change_.arrivals.clear();
  leaving_.clear();
  holes_.clear();
  for (const int64_t neuron : wanted)
    if (row_of(neuron) < 0) change_.arrivals.push_back({neuron, -1});
  policy_->step(wanted, capacity_rows(), leaving_);
  for (const int64_t neuron : leaving_) {
    holes_.push_back(row_of(neuron));
    row_of_[static_cast<size_t>(neuron)] = -1;
  }
  fill_holes();
  ++stats_.step_count;
  stats_.arrival_count += static_cast<int64_t>(change_.arrivals.size());
  stats_.drop_count += static_cast<int64_t>(leaving_.size());
  stats_.move_count += static_cast<int64_t>(change_.moves.size());
  return change_;
}

// Arrivals take the lowest holes and then new rows at the end. Of the holes left over, those that lie before the new
// end get the rows that lie after it, from the last row down and past the holes among them: each row moves once, is no
// hole itself, and, the filled holes being the lowest, no arrival either.
void RowWindow::fill_holes() {
  std::sort(holes_.begin(), holes_.end());
  const size_t filled_count = std::min(holes_.size(), change_.arrivals.size());
  const int64_t end = resident_count_, new_end = end - static_cast<int64_t>(holes_.size() - filled_count);
  int64_t source = end - 1;
  for (size_t at = filled_count, past = holes_.size(); at < past && holes_[at] < new_end; ++at, --source) {
    for (; holes_[past - 1] == source; --past) --source;
    change_.moves.push_back({source, holes_[at]});
    place(neuron_of_[static_cast<size_t>(source)], holes_[at]);
  }
  std::fill(neuron_of_.begin() + new_end, neuron_of_.begin() + end, -1);
  resident_count_ = new_end;
  for (size_t at = 0; at < change_.arrivals.size(); ++at) {
    RowArrival& arrival = change_.arrivals[at];
    arrival.row = at < filled_count ? holes_[at] : resident_count_++;
    place(arrival.neuron, arrival.row);
  }
}

void RowWindow::clear() {
  policy_->clear();
  std::fill(row_of_.begin(), row_of_.end(), -1);
  std::fill(neuron_of_.begin(), neuron_of_.end(), -1);
  resident_count_ = 0;
}

RowWindowStats RowWindow::stats() const {
  RowWindowStats stats = stats_;
  stats.set_operation_count = policy_->operation_count();
  stats.shrink_count = policy_->shrink_count();
  return stats;
}

void RowWindow::check_invariants() const {
  int64_t count = 0;
  for (int64_t neuron = 0; neuron < neuron_count(); ++neuron) {
    const int64_t row = row_of(neuron);
    MEMSYS_EXPECT((row >= 0) == policy_->keeps(neuron), Error,
                  "neuron " + std::to_string(neuron) + " is resident and not kept, or kept and not resident");
    if (row < 0) continue;
    ++count;
    MEMSYS_EXPECT(
        row < resident_count_ && neuron_of_[static_cast<size_t>(row)] == neuron, Error,
        "neuron " + std::to_string(neuron) + " lies in row " + std::to_string(row) + ", which is not its own");
  }
  MEMSYS_EXPECT(count == resident_count_ && count == policy_->kept_count(), Error,
                std::to_string(count) + " neurons have rows, " + std::to_string(resident_count_) +
                    " rows are in use, and the policy keeps " + std::to_string(policy_->kept_count()));
  for (int64_t row = resident_count_; row < capacity_rows(); ++row)
    MEMSYS_EXPECT(neuron_of_[static_cast<size_t>(row)] == -1, Error,
                  "row " + std::to_string(row) + " is free and has a neuron");
}

}  // namespace memsys
