// What the lanes did and how full each tier was, while somebody wants to know: transfers with begin and end, and the
// levels of the budgets. Off until started, and then one relaxed load for each transfer. On, it keeps the newest
// `capacity` entries of each kind in memory that is allocated at the start, and counts those it dropped.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/executor.h"
#include "engine/transfer_engine.h"
#include "memory/memory_resource.h"

namespace memsys {

// Device memory is at one end of the first kind; the second moves bytes between two tiers below it.
enum class Hop { device, below };
enum class TransferOutcome { done, failed };

struct TransferEntry {
  Direction direction = Direction::out;
  Tier tier = Tier::file;  // the lower end
  Hop hop = Hop::device;
  TransferOutcome outcome = TransferOutcome::done;
  int64_t begin_us = -1, end_us = -1;  // of the executor's clock
  int64_t bytes = 0;
  int64_t block_id = 0;
};

struct LevelEntry {
  Tier tier = Tier::device;
  int64_t at_us = 0;
  int64_t used_bytes = 0;  // from then on
};

class TransferLog {
 public:
  explicit TransferLog(std::shared_ptr<Executor> executor) : executor_(std::move(executor)) {}

  // Forgets what was kept before. Throws InputError for a capacity below 1.
  void start(int64_t capacity);
  // What was kept stays readable.
  void stop() { is_on_.store(false, std::memory_order_relaxed); }
  bool is_on() const { return is_on_.load(std::memory_order_relaxed); }
  int64_t now_us() const { return executor_->now_us(); }

  // A transfer's begin: now, or -1 while the log is off, which end() then ignores.
  int64_t begin() const { return is_on() ? now_us() : -1; }
  // The transfer that `entry` describes, with a begin from begin(), ends now.
  void end(TransferEntry entry) noexcept;
  void note_level(Tier tier, int64_t used_bytes) noexcept;

  // Oldest first.
  std::vector<TransferEntry> transfers() const { return copy(transfers_); }
  std::vector<LevelEntry> levels() const { return copy(levels_); }
  int64_t dropped_count() const;

 private:
  // The newest entries, in order of writing from `next` on once it is full.
  template <typename Entry>
  struct Ring {
    std::vector<Entry> entries;
    size_t next = 0;
    int64_t dropped_count = 0;
  };

  template <typename Entry>
  void add(Ring<Entry>& ring, const Entry& entry) noexcept;
  template <typename Entry>
  std::vector<Entry> copy(const Ring<Entry>& ring) const;

  const std::shared_ptr<Executor> executor_;
  std::atomic<bool> is_on_{false};
  mutable std::mutex mutex_;  // guards what follows; held for a few assignments
  size_t capacity_ = 0;
  Ring<TransferEntry> transfers_;
  Ring<LevelEntry> levels_;
};

// For ByteBudget: tells the log of each level of a tier's budget.
std::function<void(int64_t)> level_watch(const std::shared_ptr<TransferLog>& log, Tier tier);

}  // namespace memsys
