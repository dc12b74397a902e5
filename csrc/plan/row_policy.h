// Which rows stay resident after a step: the last k sets, a static hot set beside them, or the most recently used.
// A policy works on the ids that come and go, never on all of them, so that a step costs what changes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace memsys {

class RowPolicy {
 public:
  virtual ~RowPolicy() = default;

  // Takes the ids wanted now (distinct, in [0, id_count), at most `capacity`), keeps them, and appends to `leaving`
  // each id that was kept before and is no longer; at most `capacity` stay.
  virtual void step(std::span<const int64_t> wanted, int64_t capacity, std::vector<int64_t>& leaving) = 0;
  virtual void clear() = 0;  // forgets every id and set

  virtual bool keeps(int64_t id) const = 0;
  virtual int64_t kept_count() const = 0;
  virtual int64_t operation_count() const = 0;  // ids looked at, over all steps
  virtual int64_t shrink_count() const = 0;     // sets that left early, for want of capacity
};

// Keeps the ids of the last `set_count` sets, this step's among them, and those of `hot` that were ever wanted. Where
// they do not fit, the oldest sets go first, and then the hot ids not wanted for longest; a window that shrank grows
// again with the next steps. An empty `hot` is the plain window; set_count 1 is the plain hot set.
std::unique_ptr<RowPolicy> make_window_policy(int64_t id_count, int64_t set_count, std::span<const int64_t> hot = {});
// Keeps as many ids as fit, those wanted last.
std::unique_ptr<RowPolicy> make_lru_policy(int64_t id_count);

}  // namespace memsys
