// A gather of rows: what is asked, where the row of one index lies, and the plain body that copies one word.
// Every launcher, on either side, sees an index through find_row, so that all agree on what wraps and what is refused.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/hd.h"

namespace memsys {

enum class IndexType { int32, int64 };

// Row index[i] of the table goes to row i of the output, or to row target_position[i] where that is given.
// A negative index counts from the table's end, once. An index outside [-row_count, row_count) writes nothing and
// reports its position i: a typed error can be raised later, and the device's context survives.
struct RowGather {
  const void* table = nullptr;  // any address, as the side that gathers sees it; rows may lie at any stride
  int64_t row_bytes = 0;
  int64_t row_stride_bytes = 0;
  int64_t row_count = 0;
  const void* index = nullptr;
  IndexType index_type = IndexType::int64;
  int64_t index_count = 0;
  void* target = nullptr;  // any address; rows that are written do not overlap
  int64_t target_stride_bytes = 0;
  const int64_t* target_position = nullptr;  // nullable
  // Becomes the least position whose index is out of range. The caller sets it to kNoPosition before; nullable.
  unsigned long long* bad_position = nullptr;
};

inline constexpr unsigned long long kNoPosition = ~0ull;

// Where one row lies and goes. No bytes: there is nothing to do. kOutOfRange: the index names no row.
struct RowSpan {
  uint64_t source = 0;
  uint64_t target = 0;
  int64_t bytes = 0;
};
inline constexpr int64_t kOutOfRange = -1;

// A position past the last index is an empty row, so that a warp can ask for more rows than there are.
MEMSYS_HD inline RowSpan find_row(const RowGather& gather, int64_t position) {
  if (position >= gather.index_count) return {};
  int64_t row = gather.index_type == IndexType::int32 ? static_cast<const int32_t*>(gather.index)[position]
                                                      : static_cast<const int64_t*>(gather.index)[position];
  if (row < 0) row += gather.row_count;
  if (row < 0 || row >= gather.row_count) return {0, 0, kOutOfRange};
  const int64_t target_row = gather.target_position == nullptr ? position : gather.target_position[position];
  // Unsigned, so that negative strides wrap as they should.
  return {reinterpret_cast<uint64_t>(gather.table) +
              static_cast<uint64_t>(row) * static_cast<uint64_t>(gather.row_stride_bytes),
          reinterpret_cast<uint64_t>(gather.target) +
              static_cast<uint64_t>(target_row) * static_cast<uint64_t>(gather.target_stride_bytes),
          gather.row_bytes};
}

// 16 bytes, the most that one lane reads or writes at once.
struct alignas(16) Chunk {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

// The widest of 16, 8, 4, 2 and 1 bytes at which every row begins and ends, in the table and in the output.
MEMSYS_HD inline int natural_word_bytes(const RowGather& gather) {
  const uint64_t places = reinterpret_cast<uint64_t>(gather.table) | reinterpret_cast<uint64_t>(gather.target) |
                          static_cast<uint64_t>(gather.row_bytes) | static_cast<uint64_t>(gather.row_stride_bytes) |
                          static_cast<uint64_t>(gather.target_stride_bytes) | 16u;
  return static_cast<int>(places & (~places + 1));
}

// The plain body: one word of one row, which needs no neighbour. A word is an integer or a Chunk of
// natural_word_bytes. Returns whether the index was in range, and leaves the report to the launcher, who knows how.
template <class Word>
struct GatherWord {
  RowGather gather;
  // Rows without bytes have one word each, for the sake of their index.
  MEMSYS_HD int64_t words_per_row() const {
    return gather.row_bytes == 0 ? 1 : gather.row_bytes / static_cast<int64_t>(sizeof(Word));
  }
  MEMSYS_HD int64_t word_count() const { return gather.index_count * words_per_row(); }
  MEMSYS_HD int64_t position(int64_t word) const { return word / words_per_row(); }

  MEMSYS_HD bool operator()(int64_t word) const {
    const RowSpan row = find_row(gather, position(word));
    if (row.bytes <= 0) return row.bytes != kOutOfRange;
    const auto offset = static_cast<uint64_t>(word % words_per_row()) * sizeof(Word);
    // memcpy, because the bytes have a type of their own; told of the alignment, it is one load and one store.
    std::memcpy(__builtin_assume_aligned(reinterpret_cast<void*>(row.target + offset), sizeof(Word)),
                __builtin_assume_aligned(reinterpret_cast<const void*>(row.source + offset), sizeof(Word)),
                sizeof(Word));
    return true;
  }
};

}  // namespace memsys
