// Counts the attempts at one kind of operation and says which of them must fail: the k-th, once or from then on. The
// seams of io, memory, pinning and threads each hold one where faults were asked for, so that tests drive the shipped
// code down its paths of failure.
#pragma once

#include <cstdint>
#include <mutex>

namespace memsys {

enum class FaultSpan { once, persistent };

// Thread-safe: counting and deciding are one step, so that with several threads exactly the k-th attempt fails.
class FaultCounter {
 public:
  // Starts counting anew, from 0. at = -1: none fails.
  void arm(int64_t at, FaultSpan span) {
    const std::lock_guard lock(mutex_);
    at_ = at;
    span_ = span;
    attempt_count_ = 0;
  }
  // Since arm().
  int64_t attempt_count() const {
    const std::lock_guard lock(mutex_);
    return attempt_count_;
  }
  bool next_fails() {
    const std::lock_guard lock(mutex_);
    const int64_t attempt = attempt_count_++;
    return at_ >= 0 && (span_ == FaultSpan::once ? attempt == at_ : attempt >= at_);
  }

 private:
  mutable std::mutex mutex_;
  int64_t at_ = -1, attempt_count_ = 0;
  FaultSpan span_ = FaultSpan::once;
};

}  // namespace memsys
