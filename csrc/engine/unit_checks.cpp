// See unit_checks.h.
#include "engine/unit_checks.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "io/checksum.h"

namespace memsys {
namespace {

constexpr int64_t kBitsPerWord = 64;

std::string describe(const UnitRange& range) {
  return "checksums of " + std::to_string(range.size_bytes) + " bytes at offset " + std::to_string(range.offset_bytes) +
         " in units of " + std::to_string(range.unit_bytes);
}

void expect_sensible(const UnitRange& range, size_t value_count) {
  MEMSYS_EXPECT(range.offset_bytes >= 0 && range.size_bytes >= 0 && range.unit_bytes > 0, InputError,
                describe(range) + ": give an offset and a size of 0 or more and a unit of at least a page");
  MEMSYS_EXPECT(range.offset_bytes % kFilePageBytes == 0 && range.unit_bytes % kFilePageBytes == 0, InputError,
                describe(range) + ": offset and unit must be multiples of " + std::to_string(kFilePageBytes) +
                    "; write the file with pack_weights, which aligns them");
  const int64_t unit_count = checked_add(range.size_bytes, range.unit_bytes - 1) / range.unit_bytes;
  MEMSYS_EXPECT(std::cmp_equal(unit_count, value_count), InputError,
                describe(range) + ": wanted " + std::to_string(unit_count) + " values, found " +
                    std::to_string(value_count) + "; give one a unit");
  // Whoever looks for a unit computes where it would end if it were whole.
  static_cast<void>(checked_add(range.offset_bytes, checked_multiply(unit_count, range.unit_bytes)));
}

}  // namespace

struct UnitChecks::Entry {
  UnitRange range;
  std::vector<uint32_t> values;
  std::unique_ptr<std::atomic<uint64_t>[]> right;  // one bit a unit

  bool is_right(int64_t index) const {
    return (right[static_cast<size_t>(index / kBitsPerWord)].load() >> (index % kBitsPerWord) & 1U) != 0;
  }
  void mark(int64_t index) const {
    right[static_cast<size_t>(index / kBitsPerWord)].fetch_or(uint64_t{1} << (index % kBitsPerWord));
  }
};

void UnitChecks::add(const UnitRange& range, std::vector<uint32_t> values) {
  expect_sensible(range, values.size());
  if (range.size_bytes == 0) return;
  const auto entry = std::make_shared<Entry>();
  entry->range = range;
  entry->right = std::make_unique<std::atomic<uint64_t>[]>(values.size() / kBitsPerWord + 1);
  entry->values = std::move(values);
  const std::lock_guard lock(mutex_);
  const auto after = std::upper_bound(entries_.begin(), entries_.end(), range.offset_bytes,
                                      [](int64_t at, const auto& one) { return at < one->range.offset_bytes; });
  const bool overlaps = (after != entries_.begin() && (*std::prev(after))->range.end_bytes() > range.offset_bytes) ||
                        (after != entries_.end() && (*after)->range.offset_bytes < range.end_bytes());
  MEMSYS_EXPECT(!overlaps, InputError, describe(range) + " overlap earlier ones: give the checksums of a byte once");
  entries_.insert(after, entry);
}

std::vector<std::shared_ptr<const UnitChecks::Entry>> UnitChecks::entries_in(const ByteSpan& span) const {
  const std::lock_guard lock(mutex_);
  const auto begin = std::partition_point(entries_.begin(), entries_.end(),
                                          [&](const auto& one) { return one->range.end_bytes() <= span.begin_bytes; });
  const auto end = std::partition_point(begin, entries_.end(),
                                        [&](const auto& one) { return one->range.offset_bytes < span.end_bytes; });
  return {begin, end};
}

// Calls visit(entry, index, unit) for each unit that is due, until it returns false.
template <typename Visit>
void UnitChecks::visit_due(const ByteSpan& span, Visit visit) const {
  if (mode_ == VerifyMode::never) return;
  for (const auto& entry : entries_in(span)) {
    const UnitRange& range = entry->range;
    const int64_t skipped = std::max<int64_t>(0, span.begin_bytes - range.offset_bytes);
    for (int64_t index = (skipped + range.unit_bytes - 1) / range.unit_bytes;; ++index) {
      const int64_t begin = range.offset_bytes + index * range.unit_bytes;
      if (begin >= range.end_bytes()) break;
      const ByteSpan unit{begin, std::min(begin + range.unit_bytes, range.end_bytes())};
      if (unit.end_bytes > span.end_bytes) break;
      if (mode_ == VerifyMode::first && entry->is_right(index)) continue;
      if (!visit(*entry, index, unit)) return;
    }
  }
}

std::vector<UnitRange> UnitChecks::ranges_in(const ByteSpan& span) const {
  std::vector<UnitRange> result;
  for (const auto& entry : entries_in(span)) result.push_back(entry->range);
  return result;
}

bool UnitChecks::is_due(const ByteSpan& span) const {
  bool found = false;
  visit_due(span, [&](const Entry&, int64_t, const ByteSpan&) {
    found = true;
    return false;
  });
  return found;
}

std::optional<UnitMismatch> UnitChecks::check(const ByteSpan& span, const void* data) const {
  std::optional<UnitMismatch> mismatch;
  visit_due(span, [&](const Entry& entry, int64_t index, const ByteSpan& unit) {
    const auto* bytes = static_cast<const unsigned char*>(data) + (unit.begin_bytes - span.begin_bytes);
    const uint32_t wanted = entry.values[static_cast<size_t>(index)];
    const uint32_t found = crc32c(bytes, unit.size_bytes());
    if (found == wanted)
      entry.mark(index);
    else
      mismatch = UnitMismatch{unit, wanted, found};
    return found == wanted;
  });
  return mismatch;
}

}  // namespace memsys
