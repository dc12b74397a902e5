// Read runs over sampled lists of rows: every wanted byte lies in exactly one run, runs ascend and do not overlap, the
// bound on extra bytes and the cap on a run's size hold, and no list of fewer reads keeps the same bound.
#include <algorithm>
#include <random>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "plan/row_runs.h"

using namespace memsys;

namespace {

constexpr int64_t kNoCap = int64_t{1} << 40;

int64_t bytes_of(const std::vector<ByteRange>& ranges) {
  int64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.size_bytes;
  return bytes;
}

int64_t bytes_of(const std::vector<ReadRun>& runs) {
  int64_t bytes = 0;
  for (const ReadRun& run : runs) bytes += run.size_bytes;
  return bytes;
}

void check_runs(const std::vector<ByteRange>& wanted, const RunLimits& limits, const std::vector<ReadRun>& runs) {
  int64_t next_range = 0, end = 0;
  for (const ReadRun& run : runs) {
    CHECK(run.offset_bytes >= end);
    CHECK_EQUAL(run.first_range, next_range);
    CHECK(run.range_count >= 1);
    end = run.offset_bytes + run.size_bytes;
    next_range += run.range_count;
    const ByteRange &first = wanted.at(static_cast<size_t>(run.first_range)),
                    &last = wanted.at(static_cast<size_t>(next_range - 1));
    CHECK_EQUAL(run.offset_bytes, first.offset_bytes);  // no read begins or ends with bytes that nobody wants
    CHECK_EQUAL(end, last.offset_bytes + last.size_bytes);
    CHECK(run.size_bytes <= limits.max_run_bytes || run.range_count == 1);
  }
  CHECK_EQUAL(next_range, static_cast<int64_t>(wanted.size()));
  CHECK(static_cast<double>(bytes_of(runs)) <= limits.amplification * static_cast<double>(bytes_of(wanted)));
}

// The fewest reads that keep the bound where no run is capped: as many gaps closed as the smallest ones allow.
size_t fewest_runs(const std::vector<ByteRange>& wanted, double amplification) {
  std::vector<int64_t> gaps;
  for (size_t at = 1; at < wanted.size(); ++at)
    gaps.push_back(wanted[at].offset_bytes - wanted[at - 1].offset_bytes - wanted[at - 1].size_bytes);
  std::sort(gaps.begin(), gaps.end());
  double extra = 0;
  size_t closed = 0;
  const auto wanted_bytes = static_cast<double>(bytes_of(wanted));
  while (closed < gaps.size() &&
         wanted_bytes + extra + static_cast<double>(gaps[closed]) <= amplification * wanted_bytes)
    extra += static_cast<double>(gaps[closed++]);
  return wanted.size() - closed;
}

std::vector<int64_t> sample_rows(std::mt19937_64& random, int64_t row_count) {
  const uint64_t share = random() % 101;
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < row_count; ++row)
    if (random() % 100 < share) rows.push_back(row);
  return rows;
}

}  // namespace

TEST(row_runs_cover_every_row_within_the_bounds) {
  std::mt19937_64 random(11);
  const std::vector<std::vector<ByteRange>> shapes{
      {{0, 8192}}, {{4096, 4096}}, {{0, 4096}, {8192, 4096}}, {{0, 1000}, {1000, 24}, {7000, 1192}}};
  for (int round = 0; round < 4000; ++round) {
    const auto& parts = shapes[random() % shapes.size()];
    const int64_t stride = parts.size() == 1 && parts[0].offset_bytes == 0 ? 8192 : 12288;
    const std::vector<ByteRange> wanted =
        row_ranges(sample_rows(random, 1 + static_cast<int64_t>(random() % 90)), parts, stride);
    const double amplification = 1 + static_cast<double>(random() % 200) / 100;
    const RunLimits limits{.amplification = amplification,
                           .max_run_bytes = round % 2 == 0 ? kNoCap : static_cast<int64_t>(1 + random() % 100'000)};
    const std::vector<ReadRun> runs = plan_read_runs(wanted, limits);
    check_runs(wanted, limits, runs);
    if (limits.max_run_bytes == kNoCap)
      CHECK_EQUAL(runs.size(), wanted.empty() ? 0 : fewest_runs(wanted, amplification));
  }
}

TEST(row_runs_merge_neighbours_and_small_gaps_first) {
  const std::vector<ByteRange> whole{{0, 10}};
  const auto run_count = [&](const std::vector<int64_t>& rows, const RunLimits& limits) {
    return plan_read_runs(row_ranges(rows, whole, 10), limits).size();
  };
  CHECK_EQUAL(run_count({0, 1, 2, 3}, {.amplification = 1}), size_t{1});
  CHECK_EQUAL(run_count({0, 2, 4, 6}, {.amplification = 1}), size_t{4});
  CHECK_EQUAL(run_count({0, 2, 4, 6}, {.amplification = 1.25}), size_t{3});  // 40 bytes wanted: one gap of 10 is free
  CHECK_EQUAL(run_count({0, 2, 4, 6}, {.amplification = 1.24}), size_t{4});
  CHECK_EQUAL(run_count({0, 2, 4, 6}, {.amplification = 1.75}), size_t{1});
  CHECK_EQUAL(run_count({0, 1, 2, 3}, {.amplification = 1, .max_run_bytes = 20}), size_t{2});
  CHECK_EQUAL(run_count({0, 1, 2, 3}, {.amplification = 1, .max_run_bytes = 5}), size_t{4});  // rows are never cut
  const std::vector<ReadRun> runs = plan_read_runs(row_ranges(std::vector<int64_t>{0, 3, 5, 6}, whole, 10), {});
  CHECK_EQUAL(runs.size(), size_t{2});  // the gap of one row is closed, not the gap of two
  CHECK_EQUAL(runs[1].offset_bytes, int64_t{30});
  CHECK_EQUAL(runs[1].size_bytes, int64_t{40});
}

TEST(row_runs_of_nothing_are_none) { CHECK(plan_read_runs({}, {}).empty()); }

TEST(row_runs_refuse_nonsense) {
  const auto plan = [](std::vector<ByteRange> wanted) { return plan_read_runs(wanted, {}); };
  CHECK_THROWS(plan({{0, 10}, {5, 10}}), InputError);
  CHECK_THROWS(plan({{10, 10}, {0, 10}}), InputError);
  CHECK_THROWS(plan({{0, 0}}), InputError);
  CHECK_THROWS(plan({{-1, 10}}), InputError);
  CHECK_THROWS(plan({{INT64_MAX, 10}}), InputError);
  const std::vector<ByteRange> one{{0, 10}};
  CHECK_THROWS(plan_read_runs(one, {.amplification = 0.9}), InputError);
  CHECK_THROWS(plan_read_runs(one, {.max_run_bytes = 0}), InputError);
}
