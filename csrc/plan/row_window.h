// Which neuron lies in which row of a matrix of few rows, step after step: the bookkeeping of "LLM in a flash"
// (section 1.7 of its data structure), without the bytes. A step takes the neurons wanted now and says which of them
// must be read and into which row, and which rows move into the places of those that leave. New neurons take those
// places first; only where more leave than come does the matrix shrink, its last rows moving in, each of them once. So
// there are never more moves than rows that leave, and none while as many come as go.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "plan/row_policy.h"

namespace memsys {

struct RowMove {
  int64_t source_row = 0, target_row = 0;
};
struct RowArrival {
  int64_t neuron = 0, row = 0;
};

// In this order: the moves, one after the other, then the arrivals. Moves touch no row that something arrives at.
struct RowChange {
  std::vector<RowMove> moves;
  std::vector<RowArrival> arrivals;  // ascending by neuron
};

struct RowWindowStats {
  int64_t step_count = 0, arrival_count = 0, drop_count = 0, move_count = 0;
  int64_t set_operation_count = 0;  // ids that the policy looked at
  int64_t shrink_count = 0;         // sets that left the window early, for want of capacity
};

class RowWindow {
 public:
  RowWindow(int64_t neuron_count, int64_t capacity_rows, std::unique_ptr<RowPolicy> policy);

  // `wanted` ascends strictly. All of it is resident afterwards. The change is valid until the next call. Throws
  // InputError for bad ids and BudgetError for more of them than rows, and then has changed nothing.
  const RowChange& step(std::span<const int64_t> wanted);
  void clear();

  int64_t row_of(int64_t neuron) const { return row_of_[static_cast<size_t>(neuron)]; }  // -1: not resident
  // Row -> neuron, of the resident rows; stays where it is, its length aside.
  std::span<const int64_t> neurons() const { return {neuron_of_.data(), static_cast<size_t>(resident_count_)}; }
  int64_t resident_count() const { return resident_count_; }
  int64_t neuron_count() const { return static_cast<int64_t>(row_of_.size()); }
  int64_t capacity_rows() const { return static_cast<int64_t>(neuron_of_.size()); }
  RowWindowStats stats() const;
  void check_invariants() const;  // throws Error on any breach; for tests

 private:
  void check_wanted(std::span<const int64_t> wanted) const;
  void place(int64_t neuron, int64_t row);
  void fill_holes();

  std::unique_ptr<RowPolicy> policy_;
  std::vector<int64_t> row_of_, neuron_of_;  // neuron -> row, row -> neuron
  int64_t resident_count_ = 0;
  RowChange change_;
  std::vector<int64_t> leaving_, holes_;  // of the step under way
  RowWindowStats stats_;
};

}  // namespace memsys
