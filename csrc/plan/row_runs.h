// Which reads bring a sorted list of rows: few large ones rather than many small ones. What is adjacent is read
// together, and so is what lies across a gap, as long as all reads together bring at most `amplification` times the
// bytes wanted: the smallest gaps are closed first, which leaves the fewest reads for that bound.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace memsys {

struct ByteRange {
  int64_t offset_bytes = 0, size_bytes = 0;
};

// One read, and which of the ranges wanted it brings: [first_range, first_range + range_count).
struct ReadRun {
  int64_t offset_bytes = 0, size_bytes = 0;
  int64_t first_range = 0, range_count = 0;
};

struct RunLimits {
  double amplification = 1.25;         // 1 or more
  int64_t max_run_bytes = 128 * 1024;  // a range alone may be larger; it is never cut
};

// The ranges that `parts` of each row lie in: `parts` are ascending and disjoint within a row of `stride_bytes`.
std::vector<ByteRange> row_ranges(std::span<const int64_t> rows, std::span<const ByteRange> parts,
                                  int64_t stride_bytes);
// `wanted` is ascending and disjoint, and no range is empty; else throws InputError.
std::vector<ReadRun> plan_read_runs(std::span<const ByteRange> wanted, const RunLimits& limits);

}  // namespace memsys
