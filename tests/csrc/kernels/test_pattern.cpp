// The pattern's bodies through the host launchers: it depends on position and seed, and every wrong word counts.
#include <cstring>
#include <set>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "kernels/launch.h"

using namespace memsys;

namespace {

std::vector<uint64_t> filled(int64_t word_count, uint64_t seed) {
  std::vector<uint64_t> words(static_cast<size_t>(word_count));
  host_kernels::fill_pattern({words.data(), word_count, seed}, 0);
  return words;
}

uint64_t mismatches(std::vector<uint64_t>& words, uint64_t seed) {
  uint64_t count = 0;
  host_kernels::count_mismatches({words.data(), static_cast<int64_t>(words.size()), seed}, &count, 0);
  return count;
}

}  // namespace

TEST(pattern_is_found_again) {
  for (const int64_t word_count : {1, 2, 255, 256, 257, 100'000}) {
    auto words = filled(word_count, 11);
    CHECK_EQUAL(mismatches(words, 11), uint64_t{0});
    CHECK_EQUAL(mismatches(words, 12), static_cast<uint64_t>(word_count));
  }
}

TEST(pattern_differs_at_every_position) {
  const auto words = filled(100'000, 3);
  CHECK_EQUAL(std::set<uint64_t>(words.begin(), words.end()).size(), words.size());
}

TEST(pattern_sees_one_flipped_bit_a_shift_and_a_swap) {
  auto words = filled(1000, 5);
  words[617] ^= uint64_t{1} << 63;
  CHECK_EQUAL(mismatches(words, 5), uint64_t{1});
  words = filled(1000, 5);
  std::memmove(words.data() + 1, words.data(), 999 * sizeof(uint64_t));
  CHECK_EQUAL(mismatches(words, 5), uint64_t{999});
  words = filled(1000, 5);
  std::swap(words[0], words[999]);
  CHECK_EQUAL(mismatches(words, 5), uint64_t{2});
}

TEST(pattern_count_adds_to_what_is_there) {
  std::vector<uint64_t> words(10, 0);
  uint64_t count = 100;
  host_kernels::count_mismatches({words.data(), 10, 1}, &count, 0);
  CHECK_EQUAL(count, uint64_t{110});
}

TEST(launchers_return_on_zero_elements) {
  host_kernels::fill_pattern({}, 0);
  host_kernels::count_mismatches({}, nullptr, 0);
}
