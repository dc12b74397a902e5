// See row_runs.h.
#include "plan/row_runs.h"

#include <algorithm>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {
namespace {

int64_t end_of(const ByteRange& range) { return range.offset_bytes + range.size_bytes; }

void expect_sorted(std::span<const ByteRange> wanted) {
  int64_t end = 0;
  for (size_t at = 0; at < wanted.size(); ++at) {
    const ByteRange& range = wanted[at];
    MEMSYS_EXPECT(range.offset_bytes >= end && range.size_bytes > 0, InputError,
                  "range " + std::to_string(at) + " of a read list is [" + std::to_string(range.offset_bytes) + ", +" +
                      std::to_string(range.size_bytes) + ") after one that ends at " + std::to_string(end) +
                      "; give ascending ranges that are disjoint and not empty");
    end = checked_add(range.offset_bytes, range.size_bytes);
  }
}

// For each range but the first: whether the gap before it is read along with its neighbours.
std::vector<char> close_gaps(std::span<const ByteRange> wanted, const RunLimits& limits) {
  struct Gap {
    int64_t bytes;
    size_t before;  // the range after the gap
  };
  std::vector<char> is_closed(wanted.size(), 0);
  std::vector<Gap> gaps;
  int64_t wanted_bytes = 0;
  for (size_t at = 0; at < wanted.size(); ++at) {
    wanted_bytes += wanted[at].size_bytes;
    if (at == 0) continue;
    const int64_t bytes = wanted[at].offset_bytes - end_of(wanted[at - 1]);
    const int64_t joined_bytes = end_of(wanted[at]) - wanted[at - 1].offset_bytes;
    is_closed[at] = bytes == 0;
    if (bytes > 0 && joined_bytes <= limits.max_run_bytes) gaps.push_back({bytes, at});
  }
  std::sort(gaps.begin(), gaps.end(), [](const Gap& left, const Gap& right) {
    return left.bytes != right.bytes ? left.bytes < right.bytes : left.before < right.before;
  });
  // The product is rounded down, and a double holds byte counts exactly up to 2^53: the bound is never passed.
  auto spare_bytes = static_cast<int64_t>(limits.amplification * static_cast<double>(wanted_bytes)) - wanted_bytes;
  for (const Gap& gap : gaps) {
    if (gap.bytes > spare_bytes) break;
    spare_bytes -= gap.bytes;
    is_closed[gap.before] = 1;
  }
  return is_closed;
}

}  // namespace

std::vector<ByteRange> row_ranges(std::span<const int64_t> rows, std::span<const ByteRange> parts,
                                  int64_t stride_bytes) {
  std::vector<ByteRange> ranges;
  ranges.reserve(rows.size() * parts.size());
  for (const int64_t row : rows)
    for (const ByteRange& part : parts)
      ranges.push_back({checked_add(checked_multiply(row, stride_bytes), part.offset_bytes), part.size_bytes});
  return ranges;
}

std::vector<ReadRun> plan_read_runs(std::span<const ByteRange> wanted, const RunLimits& limits) {
  MEMSYS_EXPECT(limits.amplification >= 1 && limits.max_run_bytes > 0, InputError,
                "reads bounded to " + std::to_string(limits.amplification) + " times what is wanted and to " +
                    std::to_string(limits.max_run_bytes) + " bytes each: give at least 1 and more than 0 bytes");
  expect_sorted(wanted);
  const std::vector<char> is_closed = close_gaps(wanted, limits);
  std::vector<ReadRun> runs;
  for (size_t at = 0; at < wanted.size(); ++at) {
    const ByteRange& range = wanted[at];
    const bool may_join = !runs.empty() && is_closed[at];
    if (may_join && end_of(range) - runs.back().offset_bytes <= limits.max_run_bytes) {
      runs.back().size_bytes = end_of(range) - runs.back().offset_bytes;
      ++runs.back().range_count;
    } else {
      runs.push_back({range.offset_bytes, range.size_bytes, static_cast<int64_t>(at), 1});
    }
  }
  return runs;
}

}  // namespace memsys
