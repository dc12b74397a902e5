// Pieces cover what was asked for, begin and end at pages, and never cut a unit: on ranges and units drawn at random.
#include <algorithm>
#include <random>

#include "base/bytes.h"
#include "csrc/check.h"
#include "plan/read_pieces.h"

using namespace memsys;

namespace {

constexpr int64_t kPage = kFilePageBytes;

bool is_unit_cut(const std::vector<UnitRange>& ranges, int64_t at) {
  for (const UnitRange& range : ranges)
    if (at > range.offset_bytes && at < range.end_bytes() && (at - range.offset_bytes) % range.unit_bytes != 0)
      return true;
  return false;
}

int64_t longest_unit(const std::vector<UnitRange>& ranges) {
  int64_t bytes = 0;
  for (const UnitRange& range : ranges) bytes = std::max(bytes, range.unit_bytes);
  return bytes;
}

std::vector<UnitRange> draw_ranges(std::mt19937_64& random) {
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random() % bound); };
  std::vector<UnitRange> ranges;
  for (int64_t at = below(4) * kPage; at < 200 * kPage;) {
    const UnitRange range{at, below(40 * kPage) + 1, (below(6) + 1) * kPage};
    if (below(4) != 0) ranges.push_back(range);
    at = align_up(range.end_bytes(), kPage) + below(3) * kPage;
  }
  return ranges;
}

}  // namespace

TEST(pieces_cover_the_range_and_cut_no_unit) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random() % bound); };
    const std::vector<UnitRange> ranges = draw_ranges(random);
    const int64_t begin = below(100) * kPage, end = begin + 1 + below(120 * kPage);
    const int64_t piece_bytes = (1 + below(16)) * kPage;
    const auto pieces = cut_pieces({begin, end}, ranges, piece_bytes);
    int64_t at = begin;
    for (const ByteSpan& piece : pieces) {
      CHECK_EQUAL(piece.begin_bytes, at);
      CHECK(piece.size_bytes() > 0);
      CHECK(piece.size_bytes() <= std::max(piece_bytes, longest_unit(ranges)));
      at = piece.end_bytes;
      if (at == end) break;
      CHECK_EQUAL(at % kPage, 0);
      CHECK(!is_unit_cut(ranges, at));
    }
    CHECK_EQUAL(at, end);
  }
}

TEST(pieces_are_as_long_as_they_may_be) {
  const auto pieces = cut_pieces({0, 10 * kPage}, {}, 4 * kPage);
  CHECK_EQUAL(pieces.size(), size_t{3});
  CHECK_EQUAL(pieces[0].size_bytes(), 4 * kPage);
  CHECK_EQUAL(pieces[2].size_bytes(), 2 * kPage);
  const std::vector<UnitRange> units{{0, 30 * kPage, 3 * kPage}};
  CHECK_EQUAL(cut_pieces({0, 30 * kPage}, units, 8 * kPage).size(), size_t{5});  // of two units each
  CHECK(cut_pieces({kPage, kPage}, units, kPage).empty());
}

TEST(pieces_leave_a_ragged_last_page_alone) {
  const auto pieces = cut_pieces({0, 3 * kPage + 100}, {}, 16 * kPage);
  CHECK_EQUAL(pieces.size(), size_t{2});
  CHECK_EQUAL(pieces[1].size_bytes(), 100);
  // Where a unit lies across its beginning, unit and page come together.
  const std::vector<UnitRange> units{{2 * kPage, kPage + 100, 2 * kPage}};
  const auto whole = cut_pieces({0, 3 * kPage + 100}, units, 16 * kPage);
  CHECK_EQUAL(whole.size(), size_t{2});
  CHECK_EQUAL(whole[1].size_bytes(), kPage + 100);
}

TEST(units_are_found_by_any_of_their_bytes) {
  const std::vector<UnitRange> ranges{{kPage, 5 * kPage + 7, 2 * kPage}, {20 * kPage, kPage, kPage}};
  CHECK(unit_at(ranges, 0) == (ByteSpan{0, 0}));
  CHECK(unit_at(ranges, kPage) == (ByteSpan{kPage, 3 * kPage}));
  CHECK(unit_at(ranges, 3 * kPage - 1) == (ByteSpan{kPage, 3 * kPage}));
  CHECK(unit_at(ranges, 6 * kPage + 6) == (ByteSpan{5 * kPage, 6 * kPage + 7}));
  CHECK(unit_at(ranges, 6 * kPage + 7) == (ByteSpan{6 * kPage + 7, 6 * kPage + 7}));
  CHECK(unit_at(ranges, 20 * kPage) == (ByteSpan{20 * kPage, 21 * kPage}));
  CHECK(unit_at({}, 5) == (ByteSpan{5, 5}));
}
