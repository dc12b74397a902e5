// A hard limit on bytes of one kind, counted at true size. Reserving more than is left fails before anything is
// allocated, so that a budget is never exceeded, not even for a moment.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace memsys {

class ByteBudget {
 public:
  // Is told what is in use after each change, by the thread that changed it; must not throw.
  using Watch = std::function<void(int64_t used_bytes)>;

  // `name` is the keyword the user set ("device_budget"); limit -1: count only.
  explicit ByteBudget(std::string name, int64_t limit_bytes = -1, Watch watch = {})
      : name_(std::move(name)), limit_bytes_(limit_bytes), watch_(std::move(watch)) {}

  bool try_reserve(int64_t bytes) noexcept;
  // Throws BudgetError naming the budget, what was wanted, what is left, and the remedy.
  void reserve(int64_t bytes);
  void release(int64_t bytes) noexcept;
  void reset_peak() noexcept { peak_bytes_ = used_bytes_.load(); }

  const std::string& name() const { return name_; }
  int64_t limit_bytes() const { return limit_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }
  // What can still be reserved; a very large number without a limit.
  int64_t left_bytes() const;

 private:
  std::string name_;
  int64_t limit_bytes_;
  Watch watch_;
  std::atomic<int64_t> used_bytes_{0}, peak_bytes_{0};
};

}  // namespace memsys
