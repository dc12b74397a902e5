// The model of requests on cases counted by hand, and what it shows: the aligned gather sends the fewest requests
// there can be at every width and every address, and the flat pattern up to twice as many.
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "kernels/request_count.h"

using namespace memsys;

namespace {

constexpr uint64_t kTable = uint64_t{1} << 40;  // at a line; nothing is read

int64_t requests(ReadPattern pattern, int64_t row_bytes, std::vector<uint64_t> offsets) {
  for (auto& offset : offsets) offset += kTable;
  return count_requests(pattern, row_bytes, offsets).request_count;
}

// Fewest requests for rows that share no line, at every offset within a line. Four rows a warp and more: a different
// count of groups is busy.
void check_least(int64_t row_bytes, const std::vector<uint64_t>& rows) {
  const auto width = static_cast<uint64_t>(row_bytes);
  const uint64_t apart = (width + 2 * 128) / width;  // rows between two whose lines are then not the same
  for (uint64_t base = 0; base < 128; ++base) {
    std::vector<uint64_t> addresses;
    for (const uint64_t row : rows) addresses.push_back(kTable + base + row * apart * width);
    const RequestCount count = count_requests(ReadPattern::aligned, row_bytes, addresses);
    if (count.request_count != count.least_count)
      check::fail(__FILE__, __LINE__,
                  std::to_string(row_bytes) + " bytes at " + std::to_string(base) + ": " +
                      std::to_string(count.request_count) + " requests, not " + std::to_string(count.least_count));
  }
}

void check_near(ReadPattern pattern, const RandomRows& rows, double expected, double tolerance) {
  const double found = count_random_requests(pattern, rows).per_row();
  if (!(std::abs(found - expected) <= tolerance))
    check::fail(__FILE__, __LINE__,
                std::to_string(rows.row_bytes) + " bytes: " + std::to_string(found) + " requests a row, not " +
                    std::to_string(expected));
}

RandomRows random_rows(int64_t row_bytes, uint64_t base, int64_t row_count) {
  return {row_bytes, row_bytes, kTable + base, row_count, 20'000, 7};
}

}  // namespace

TEST(requests_counted_by_hand) {
  using enum ReadPattern;
  CHECK_EQUAL(requests(aligned, 128, {0}), 1);
  CHECK_EQUAL(requests(aligned, 128, {64}), 2);
  CHECK_EQUAL(requests(aligned, 4, {126}), 2);
  CHECK_EQUAL(requests(flat, 4, {128, 128 + 32, 128 + 96}), 2);  // sectors 0 and 1, and sector 3
  CHECK_EQUAL(requests(flat, 4, {0, 64}), 2);                    // one line, but a sector between
  CHECK_EQUAL(requests(flat, 128, {64}), 2);
  CHECK_EQUAL(requests(flat, 256, {64}), 4);  // the line in the middle is asked for by two instructions
  CHECK_EQUAL(requests(aligned, 256, {64}), 3);
  CHECK_EQUAL(requests(flat, 64, {0, 1024}), 2);   // one warp, two rows
  CHECK_EQUAL(requests(flat, 6, {0, 1024}), 2);    // words of 2 bytes
  CHECK_EQUAL(requests(flat, 33, {31, 1024}), 4);  // words of 1 byte: 32 of a row, its last and 31 of the next, 2
  CHECK_EQUAL(requests(aligned, 0, {5}), 0);
  CHECK_EQUAL(requests(flat, 8, {}), 0);
}

TEST(requests_of_rows_in_one_line_are_merged_within_an_instruction) {
  CHECK_EQUAL(requests(ReadPattern::aligned, 16, {0, 16, 32, 48, 64, 80, 96, 112}), 1);
  CHECK_EQUAL(requests(ReadPattern::aligned, 16, {256, 256, 256}), 1);
  CHECK_EQUAL(requests(ReadPattern::aligned, 512, {0, 0, 0, 0}), 4);
}

TEST(aligned_takes_the_fewest_requests_at_every_width_to_1024) {
  for (int64_t row_bytes = 1; row_bytes <= 1024; ++row_bytes) check_least(row_bytes, {0, 7, 1, 3, 11, 5, 2, 30});
}

TEST(aligned_takes_the_fewest_requests_at_every_width_to_4096) {
  for (int64_t row_bytes = 1025; row_bytes <= 4096; ++row_bytes) check_least(row_bytes, {5, 2, 0, 9});
}

TEST(aligned_takes_the_fewest_requests_at_wider_rows) {
  for (int64_t row_bytes = 4097; row_bytes <= 20'000; row_bytes += 97) check_least(row_bytes, {1, 4, 6});
}

TEST(aligned_never_takes_more_than_the_fewest) {
  std::mt19937_64 random(3);
  for (int sample = 0; sample < 2000; ++sample) {
    const auto row_bytes = static_cast<int64_t>(1 + random() % 700);
    const RandomRows rows{row_bytes, row_bytes, kTable + random() % 128, 40, 100, random()};  // neighbours and repeats
    const RequestCount count = count_random_requests(ReadPattern::aligned, rows);
    CHECK(count.request_count <= count.least_count);
    CHECK_EQUAL(count.row_count, 100);
  }
}

TEST(requests_of_reddit_rows) {
  const RandomRows rows = random_rows(2408, 0, 232'965);
  check_near(ReadPattern::aligned, rows, 19.7, 0.1);
  check_near(ReadPattern::flat, rows, 37.5, 0.3);
}

TEST(requests_of_papers100M_rows) {
  const RandomRows rows = random_rows(512, 64, 111'059'956);
  check_near(ReadPattern::aligned, rows, 5, 0);
  check_near(ReadPattern::flat, rows, 8, 0);
  check_near(ReadPattern::aligned, random_rows(512, 0, 111'059'956), 4, 0);
}

TEST(requests_of_products_rows) {
  check_near(ReadPattern::aligned, random_rows(400, 64, 2'449'029), 4, 0.05);
  check_near(ReadPattern::flat, random_rows(400, 64, 2'449'029), 6.59, 0.1);
  check_near(ReadPattern::flat, random_rows(400, 0, 2'449'029), 6.69, 0.1);
}

TEST(requests_of_impossible_rows_are_refused) {
  CHECK_THROWS(count_requests(ReadPattern::aligned, -1, {}), InputError);
  CHECK_THROWS(count_random_requests(ReadPattern::flat, {.row_bytes = 4}), InputError);
}
