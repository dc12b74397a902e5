// Fuzz target: the bytes are checksums that a weight file is said to have (offset, size, unit, count of values) and
// ranges that are read from it, as 64-bit numbers. Whatever the numbers are, they are refused by an InputError, or
// units and pieces follow one another without a gap and stay in the file. Numbers that overflow are the sanitizer's.
#include <algorithm>
#include <cstring>
#include <limits>

#include "base/bytes.h"
#include "base/error.h"
#include "csrc/fuzz/random.h"
#include "csrc/fuzz/target.h"
#include "engine/unit_checks.h"

using namespace memsys;
using fuzz::expect;

namespace {

constexpr int64_t kMaxValues = 128, kMaxPieces = 16;

class Numbers {
 public:
  Numbers(const uint8_t* data, size_t size) : data_(data), left_(size / 8) {}
  bool is_over() const { return left_ == 0; }
  int64_t next() {
    int64_t value = 0;
    if (left_ == 0) return 0;
    std::memcpy(&value, data_, 8);
    data_ += 8;
    --left_;
    return value;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

bool is_inside(int64_t offset, int64_t size, int64_t file_bytes) {
  return offset >= 0 && size >= 0 && offset <= file_bytes && size <= file_bytes - offset;
}

void check_range(const UnitChecks& checks, const ByteSpan& span, int64_t piece_bytes) {
  const auto ranges = checks.ranges_in(span);
  for (size_t index = 1; index < ranges.size(); ++index)
    expect(ranges[index - 1].end_bytes() <= ranges[index].offset_bytes, "ranges are in order and apart");
  static_cast<void>(checks.is_due(span));
  int64_t at = span.begin_bytes;
  for (const ByteSpan& piece : cut_pieces(span, ranges, piece_bytes)) {
    expect(piece.begin_bytes == at && piece.end_bytes > at, "pieces follow one another");
    at = piece.end_bytes;
    const ByteSpan unit = unit_at(ranges, at);
    expect(at == span.end_bytes || unit.begin_bytes >= at || unit.size_bytes() == 0, "no unit is cut");
  }
  expect(at == std::max(span.begin_bytes, span.end_bytes), "pieces cover the range");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Numbers numbers(data, size);
  const int64_t file_bytes = numbers.next() & std::numeric_limits<int64_t>::max();
  UnitChecks checks(VerifyMode::first);
  while (!numbers.is_over()) {
    const int64_t offset = numbers.next(), length = numbers.next(), unit = numbers.next();
    const auto count = static_cast<size_t>(numbers.next() & (kMaxValues - 1));
    // As WeightFile does: what is not in the file is refused before anything else is asked.
    if (!is_inside(offset, length, file_bytes)) continue;
    try {
      checks.add({offset, length, unit}, std::vector<uint32_t>(count));
    } catch (const InputError&) {
    }
    const int64_t piece_bytes = align_up(std::max<int64_t>(length / kMaxPieces, kFilePageBytes), kFilePageBytes);
    check_range(checks, {offset, offset + length}, piece_bytes);
  }
  return 0;
}
