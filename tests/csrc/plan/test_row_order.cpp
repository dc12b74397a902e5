// An order by region is a permutation that goes through the regions in ascending order and keeps, within each, the
// order as given: held for sampled tables, shifts and indices of both widths, negative ones among them.
#include <algorithm>
#include <numeric>
#include <random>

#include "csrc/check.h"
#include "plan/row_order.h"

using namespace memsys;

namespace {

template <class Index>
void check_order(const std::vector<Index>& index, int64_t row_count, int region_shift) {
  const std::vector<int32_t> order = order_by_region(std::span<const Index>(index), row_count, region_shift);
  CHECK_EQUAL(order.size(), index.size());
  std::vector<int32_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (size_t at = 0; at < sorted.size(); ++at) CHECK_EQUAL(sorted[at], static_cast<int32_t>(at));
  const auto region = [&](int32_t position) {
    const auto row = static_cast<int64_t>(index[static_cast<size_t>(position)]);
    return (row < 0 ? row + row_count : row) >> region_shift;
  };
  for (size_t at = 1; at < order.size(); ++at) {
    CHECK(region(order[at - 1]) <= region(order[at]));
    if (region(order[at - 1]) == region(order[at])) CHECK(order[at - 1] < order[at]);
  }
}

void check_both(const std::vector<int64_t>& index, int64_t row_count, int region_shift) {
  check_order(index, row_count, region_shift);
  check_order(std::vector<int32_t>(index.begin(), index.end()), row_count, region_shift);
}

std::vector<int32_t> order_of(const std::vector<int64_t>& index, int64_t row_count, int region_shift) {
  return order_by_region(std::span<const int64_t>(index), row_count, region_shift);
}

}  // namespace

TEST(row_order_is_stable_by_region_for_a_sample) {
  std::mt19937_64 random(7);
  for (int sample = 0; sample < 3000; ++sample) {
    const auto row_count = static_cast<int64_t>(1 + random() % (sample % 2 == 0 ? 20 : 100'000));
    std::vector<int64_t> index(random() % 300);
    for (int64_t& one : index) one = static_cast<int64_t>(random() % static_cast<uint64_t>(2 * row_count)) - row_count;
    check_both(index, row_count, static_cast<int>(random() % 22));
  }
}

TEST(row_order_of_known_lists) {
  using Order = std::vector<int32_t>;
  CHECK(order_of({5, 0, 4, 1, 7, 0}, 8, 2) == (Order{1, 3, 5, 0, 2, 4}));
  CHECK(order_of({-1, 0, -8, 7, 3}, 8, 2) == (Order{1, 2, 4, 0, 3}));
  CHECK(order_of({3, 9, 6, 1}, 10, 62) == (Order{0, 1, 2, 3}));  // one region: as given
}

TEST(row_order_without_a_shift_sorts_fully) {
  std::vector<int64_t> index(500);
  std::iota(index.begin(), index.end(), -250);
  std::shuffle(index.begin(), index.end(), std::mt19937(3));
  check_both(index, 250, 0);
  const std::vector<int32_t> order = order_of(index, 250, 0);
  for (size_t at = 0; at < order.size(); ++at)  // each row twice: by its index and counted from the end
    CHECK_EQUAL((index[static_cast<size_t>(order[at])] + 250) % 250, static_cast<int64_t>(at / 2));
}

TEST(row_order_at_the_edges) {
  for (const int shift : {0, 1, 20, 62}) {
    check_both({}, 10, shift);
    check_both({}, 0, shift);
    check_both({0, -1, 0, -1}, 1, shift);
  }
  for (const int64_t row_count : {15, 16, 17})  // the last region is full, or has one row
    check_both({row_count - 1, 0, -1, -row_count, 7, 8}, row_count, 3);
  const int64_t row_count = int64_t{1} << 40;
  check_order(std::vector<int64_t>{row_count - 1, -row_count, -1, 1 << 30, 0}, row_count, 30);
}
