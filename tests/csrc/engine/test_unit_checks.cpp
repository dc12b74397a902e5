// The list of a file's checksums by itself: what is refused, what is found wrong, and numbers near the largest.
#include <limits>

#include "csrc/engine/rig.h"
#include "engine/unit_checks.h"
#include "io/checksum.h"

using namespace memsys;

namespace {

constexpr int64_t kPage = kFilePageBytes;
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
constexpr int64_t kLastPage = kLargest - kLargest % kPage;

}  // namespace

TEST(checksums_that_make_no_sense_are_refused) {
  UnitChecks checks(VerifyMode::first);
  const std::vector<uint32_t> one(1), two(2);
  CHECK_THROWS(checks.add({-kPage, kPage, kPage}, one), InputError);
  CHECK_THROWS(checks.add({0, -1, kPage}, {}), InputError);
  CHECK_THROWS(checks.add({0, kPage, 0}, one), InputError);
  CHECK_THROWS(checks.add({1, kPage, kPage}, one), InputError);
  CHECK_THROWS(checks.add({0, kPage, kPage + 1}, one), InputError);
  CHECK_THROWS(checks.add({0, kPage, kPage}, two), InputError);
  CHECK_THROWS(checks.add({0, kPage + 1, kPage}, one), InputError);
  checks.add({0, 0, kPage}, {});
  checks.add({2 * kPage, 2 * kPage, kPage}, two);
  CHECK_THROWS(checks.add({kPage, kPage + 1, kPage}, two), InputError);
  CHECK_THROWS(checks.add({3 * kPage, kPage, kPage}, one), InputError);
  CHECK_EQUAL(checks.ranges_in({0, 10 * kPage}).size(), 1u);
}

// Found by fuzzing: where a unit would end was computed before anyone asked whether there is such a unit.
TEST(units_near_the_largest_number_do_not_overflow) {
  UnitChecks checks(VerifyMode::first);
  const std::vector<uint32_t> one(1);
  CHECK_THROWS(checks.add({kPage, 100, kLastPage}, one), InputError);
  CHECK_THROWS(checks.add({kLastPage, 2 * kPage, kPage}, std::vector<uint32_t>(2)), InputError);
  checks.add({0, 100, kLastPage}, one);
  CHECK(checks.is_due({0, 100}));
  CHECK(!checks.is_due({0, 99}));
  CHECK(!checks.is_due({1, 100}));
  checks.add({kLastPage - kPage, 5, kPage}, one);
  CHECK(checks.is_due({kLastPage - kPage, kLargest}));
  CHECK_EQUAL(unit_at(checks.ranges_in({0, kLargest}), kLastPage - kPage).size_bytes(), 5);
}

TEST(a_unit_is_due_until_it_was_right_once) {
  const std::vector<unsigned char> bytes(2 * kPage, 7);
  const std::vector<uint32_t> right{crc32c(bytes.data(), kPage), crc32c(bytes.data(), 100)};
  const ByteSpan whole{0, kPage + 100};
  for (const auto mode : {VerifyMode::first, VerifyMode::always, VerifyMode::never}) {
    UnitChecks checks(mode);
    checks.add({0, kPage + 100, kPage}, right);
    CHECK_EQUAL(checks.is_due(whole), mode != VerifyMode::never);
    CHECK(!checks.check(whole, bytes.data()));
    CHECK_EQUAL(checks.is_due(whole), mode == VerifyMode::always);
  }
  UnitChecks checks(VerifyMode::first);
  checks.add({0, kPage + 100, kPage}, {right[0], right[1] ^ 1});
  const auto found = checks.check(whole, bytes.data());
  CHECK(found && found->unit == (ByteSpan{kPage, kPage + 100}) && found->found == right[1]);
  CHECK(!checks.is_due({0, kPage}));
  CHECK(checks.is_due(whole));
}
