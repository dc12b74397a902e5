// See read_pieces.h.
#include "plan/read_pieces.h"

#include <algorithm>

#include "base/bytes.h"

namespace memsys {

ByteSpan unit_at(std::span<const UnitRange> ranges, int64_t offset) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), offset,
                                      [](int64_t at, const UnitRange& range) { return at < range.offset_bytes; });
  if (after == ranges.begin()) return {offset, offset};
  const UnitRange& range = *std::prev(after);
  if (offset >= range.end_bytes()) return {offset, offset};
  const int64_t begin = offset - (offset - range.offset_bytes) % range.unit_bytes;
  return {begin, std::min(begin + range.unit_bytes, range.end_bytes())};
}

std::vector<ByteSpan> cut_pieces(const ByteSpan& whole, std::span<const UnitRange> ranges, int64_t piece_bytes) {
  std::vector<ByteSpan> pieces;
  for (int64_t at = whole.begin_bytes; at < whole.end_bytes; at = pieces.back().end_bytes) {
    int64_t cut = whole.end_bytes;
    if (whole.end_bytes - at > piece_bytes) cut = align_down(at + piece_bytes, kFilePageBytes);
    // The ragged end goes through the page cache; the rest of the last piece must not follow it.
    if (cut % kFilePageBytes != 0 && align_down(cut, kFilePageBytes) > at) cut = align_down(cut, kFilePageBytes);
    const ByteSpan unit = unit_at(ranges, cut);
    const bool is_inside = cut < whole.end_bytes && unit.begin_bytes < cut && cut < unit.end_bytes;
    if (is_inside) cut = unit.begin_bytes > at ? unit.begin_bytes : align_up(unit.end_bytes, kFilePageBytes);
    pieces.push_back({at, std::min(cut, whole.end_bytes)});
  }
  return pieces;
}

}  // namespace memsys
