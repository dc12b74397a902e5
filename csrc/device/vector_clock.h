// A vector clock (Fidge 1988, Mattern 1989): for every actor (the host, a stream), how many of its operations are
// known to have happened before now. One actor's operation happens before another's exactly if the other knows it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace memsys {

class VectorClock {
 public:
  uint64_t at(int actor) const {
    const auto index = static_cast<size_t>(actor);
    return index < ticks_.size() ? ticks_[index] : 0;
  }
  // One more operation of `actor`; returns its tick.
  uint64_t advance(int actor) {
    const auto index = static_cast<size_t>(actor);
    if (index >= ticks_.size()) ticks_.resize(index + 1, 0);
    return ++ticks_[index];
  }
  // Knows from now on what `other` knows.
  void join(const VectorClock& other) {
    if (ticks_.size() < other.ticks_.size()) ticks_.resize(other.ticks_.size(), 0);
    for (size_t index = 0; index < other.ticks_.size(); ++index)
      ticks_[index] = std::max(ticks_[index], other.ticks_[index]);
  }

 private:
  std::vector<uint64_t> ticks_;
};

}  // namespace memsys
