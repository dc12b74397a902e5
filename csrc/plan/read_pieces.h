// How a range of a file is cut into reads: at page boundaries, so that each can go past the page cache, and never
// inside a unit that has one checksum, so that each piece can be verified as it comes in.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace memsys {

inline constexpr int64_t kFilePageBytes = 4096;

// [offset, offset + size) in units of unit_bytes, the last one perhaps shorter. Offset and unit are whole pages.
struct UnitRange {
  int64_t offset_bytes = 0, size_bytes = 0, unit_bytes = 0;
  int64_t end_bytes() const { return offset_bytes + size_bytes; }
};

struct ByteSpan {
  int64_t begin_bytes = 0, end_bytes = 0;  // half-open
  int64_t size_bytes() const { return end_bytes - begin_bytes; }
  bool operator==(const ByteSpan&) const = default;
};

// The unit of `ranges` (by offset, not overlapping) that holds the byte at `offset`; empty at `offset` if none does.
ByteSpan unit_at(std::span<const UnitRange> ranges, int64_t offset);

// Pieces that follow each other and cover `whole`, each of at most `piece_bytes` (a multiple of the page) unless one
// unit is longer. Where the last page is ragged and no unit lies across its beginning, it is a piece of its own.
std::vector<ByteSpan> cut_pieces(const ByteSpan& whole, std::span<const UnitRange> ranges, int64_t piece_bytes);

}  // namespace memsys
