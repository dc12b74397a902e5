// Places requests with known lifetimes in a given order. Two ways: into the tightest gap, which looks at every request
// placed before; and on top of everything placed below it in time, which a tree of heights answers in log n and which
// plans of many thousand requests begin with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/lifetime_plan.h"

namespace memsys {

struct Placement {
  std::vector<int64_t> offsets;
  int64_t peak_bytes = 0;
  // The request that did not fit below the ceiling, and then the placement is incomplete; -1: all did.
  int64_t failed = -1;
};

// Sizes are multiples of the alignment; positions lie in [0, position_count).
struct LifetimeProblem {
  std::vector<LifetimeRequest> requests;
  int64_t position_count = 0;
};

// Each into the smallest gap that takes it, the lowest of these; stops at the first that would end above `ceiling`.
// Adds the comparisons it made to `work`.
Placement place_in_gaps(const LifetimeProblem& problem, std::span<const int64_t> order, int64_t ceiling, int64_t& work);
// Each directly above all that is placed in its lifetime.
Placement place_on_top(const LifetimeProblem& problem, std::span<const int64_t> order);
// In the order of time, knowing no future: the tightest hole between what is alive.
Placement place_online(const LifetimeProblem& problem);

}  // namespace memsys
