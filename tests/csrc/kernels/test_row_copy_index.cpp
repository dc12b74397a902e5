// The check of an index before its rows are copied: the first bad position, wherever it lies in the batches that the
// backends look at, and for the most extreme indices, where the arithmetic could wrap.
#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "csrc/check.h"
#include "kernels/row_copy.h"

using namespace memsys;

namespace {

template <class Index>
bool is_bad(Index index, int64_t row_count) {
  return static_cast<int64_t>(index) < -row_count || static_cast<int64_t>(index) >= row_count;
}

// Compares with a loop over [begin, end), on an index of exactly its size.
template <class Index>
void check_find(const std::vector<Index>& index, int64_t row_count, int64_t begin, int64_t end) {
  int64_t expected = -1;
  for (int64_t at = end; at-- > begin;)
    if (is_bad(index[static_cast<size_t>(at)], row_count)) expected = at;
  RowCopy copy{.row_bytes = 4, .row_stride_bytes = 4, .row_count = row_count, .index = index.data()};
  copy.index_type = sizeof(Index) == 4 ? IndexType::int32 : IndexType::int64;
  for (const RowCopyBackend& backend : row_copy_backends()) {
    if (!backend.is_supported()) continue;
    const int64_t found = backend.find_bad_index(copy, begin, end);
    if (found == expected) continue;
    std::ostringstream text;
    text << backend.name << ", " << 8 * sizeof(Index) << " bits, [" << begin << ", " << end << ") into " << row_count
         << " rows: found " << found << ", not " << expected;
    check::fail(__FILE__, __LINE__, text.str());
  }
}

template <class Index>
void check_whole(const std::vector<Index>& index, int64_t row_count) {
  check_find(index, row_count, 0, static_cast<int64_t>(index.size()));
}

// One bad index at each interesting position, then a second one after it.
template <class Index>
void check_positions(int64_t begin, int64_t count) {
  constexpr int64_t kRows = 10;
  std::vector<Index> index(static_cast<size_t>(begin + count));
  for (size_t at = 0; at < index.size(); ++at) index[at] = static_cast<Index>(static_cast<int64_t>(at % 20) - kRows);
  check_find(index, kRows, begin, begin + count);
  if (begin > 0) index.front() = kRows;  // before the range: no concern of it
  for (const int64_t at : {0, 1, 127, 255, 256, 257, 511, 512, 513, 767, 768, 769, 999}) {
    if (at >= count) continue;
    for (const int64_t value : {kRows, -kRows - 1}) {
      std::vector<Index> spoilt = index;
      spoilt[static_cast<size_t>(begin + at)] = static_cast<Index>(value);
      check_find(spoilt, kRows, begin, begin + count);
      check_find(spoilt, kRows, begin, begin + at);  // ends before it
      spoilt.back() = static_cast<Index>(kRows);
      check_find(spoilt, kRows, begin, begin + count);
    }
  }
}

template <class Index>
std::vector<Index> extremes() {
  using Limits = std::numeric_limits<Index>;
  return {Limits::min(),     Limits::min() + 1, Limits::min() / 2, -2,           -1, 0, 1, 2,
          Limits::max() / 2, Limits::max() - 1, Limits::max(),     Limits::min()};
}

template <class Index>
void check_extremes(int64_t row_count) {
  const std::vector<Index> index = extremes<Index>();
  for (size_t first = 0; first < index.size(); ++first) {
    check_whole(std::vector<Index>{index[first]}, row_count);
    check_whole(std::vector<Index>(index.begin() + static_cast<ptrdiff_t>(first), index.end()), row_count);
    std::vector<Index> among(600, Index{0});
    among[300] = index[first];
    check_whole(among, row_count);
  }
}

}  // namespace

TEST(bad_index_is_found_at_every_place_in_a_batch) {
  for (const int64_t begin : {0, 1, 255, 256, 300})
    for (const int64_t count : {1, 2, 255, 256, 257, 512, 513, 1000}) {
      check_positions<int32_t>(begin, count);
      check_positions<int64_t>(begin, count);
    }
}

TEST(bad_index_knows_both_ends_of_the_valid_range) {
  for (const int64_t row_count : {1, 2, 5, 1000}) {
    check_whole(std::vector<int64_t>{-row_count, row_count - 1}, row_count);
    check_whole(std::vector<int64_t>{-row_count, row_count}, row_count);
    check_whole(std::vector<int64_t>{row_count - 1, -row_count - 1}, row_count);
  }
}

TEST(bad_index_is_found_among_the_most_extreme_ones) {
  for (const int64_t row_count : {int64_t{0}, int64_t{1}, int64_t{5}, (int64_t{1} << 31) - 1, int64_t{1} << 31,
                                  (int64_t{1} << 31) + 1, int64_t{1} << 40, std::numeric_limits<int64_t>::max()}) {
    check_extremes<int32_t>(row_count);
    check_extremes<int64_t>(row_count);
  }
}

TEST(bad_index_is_every_index_of_an_empty_table) {
  check_whole(std::vector<int64_t>{0, 1, -1}, 0);
  check_whole(std::vector<int32_t>{-1}, 0);
  check_whole(std::vector<int64_t>{}, 0);
  check_find(std::vector<int64_t>{0, 0, 0}, 0, 2, 2);
}

TEST(bad_index_is_the_first_of_a_sample) {
  std::mt19937_64 random(11);
  for (int sample = 0; sample < 2000; ++sample) {
    const auto row_count = static_cast<int64_t>(random() % 5000);
    std::vector<int64_t> index(random() % 1500);
    for (int64_t& one : index)
      one = static_cast<int64_t>(random() % static_cast<uint64_t>(2 * row_count + 1)) - row_count;
    if (row_count > 0 && random() % 2 == 0)
      for (int64_t& one : index) one = std::min(one, row_count - 1);
    const auto begin = static_cast<int64_t>(random() % (index.size() + 1));
    check_find(index, row_count, begin, static_cast<int64_t>(index.size()));
    check_find(std::vector<int32_t>(index.begin(), index.end()), row_count, begin, static_cast<int64_t>(index.size()));
  }
}
