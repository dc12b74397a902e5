// See transfer_log.h.
#include "engine/transfer_log.h"

#include <string>

#include "base/error.h"

namespace memsys {

void TransferLog::start(int64_t capacity) {
  MEMSYS_EXPECT(capacity > 0, InputError,
                "transfer log: wanted room for at least 1 entry, found " + std::to_string(capacity));
  const std::lock_guard lock(mutex_);
  capacity_ = static_cast<size_t>(capacity);
  transfers_ = {};
  levels_ = {};
  // All of it now: an entry is written where no allocation may fail.
  transfers_.entries.reserve(capacity_);
  levels_.entries.reserve(capacity_);
  is_on_.store(true, std::memory_order_relaxed);
}

void TransferLog::end(TransferEntry entry) noexcept {
  if (entry.begin_us < 0 || !is_on()) return;
  entry.end_us = now_us();
  add(transfers_, entry);
}

void TransferLog::note_level(Tier tier, int64_t used_bytes) noexcept {
  if (!is_on()) return;
  add(levels_, LevelEntry{tier, now_us(), used_bytes});
}

int64_t TransferLog::dropped_count() const {
  const std::lock_guard lock(mutex_);
  return transfers_.dropped_count + levels_.dropped_count;
}

template <typename Entry>
void TransferLog::add(Ring<Entry>& ring, const Entry& entry) noexcept {
  const std::lock_guard lock(mutex_);
  if (ring.entries.size() < capacity_) return ring.entries.push_back(entry);
  ring.entries[ring.next] = entry;
  ring.next = (ring.next + 1) % capacity_;
  ++ring.dropped_count;
}

template <typename Entry>
std::vector<Entry> TransferLog::copy(const Ring<Entry>& ring) const {
  const std::lock_guard lock(mutex_);
  std::vector<Entry> found;
  found.reserve(ring.entries.size());
  const auto oldest = ring.entries.begin() + static_cast<std::ptrdiff_t>(ring.next);
  found.insert(found.end(), oldest, ring.entries.end());
  found.insert(found.end(), ring.entries.begin(), oldest);
  return found;
}

template std::vector<TransferEntry> TransferLog::copy(const Ring<TransferEntry>& ring) const;
template std::vector<LevelEntry> TransferLog::copy(const Ring<LevelEntry>& ring) const;

std::function<void(int64_t)> level_watch(const std::shared_ptr<TransferLog>& log, Tier tier) {
  return [log, tier](int64_t used_bytes) { log->note_level(tier, used_bytes); };
}

}  // namespace memsys
