// The loops that every row copy backend shares. A backend's file defines MEMSYS_ISA (the target attribute under which
// this is compiled) and then includes it: all that is here lives in that file alone, so that no instruction of one
// backend leaks into another.
//
// A backend's Registers class says how one row moves: `copy<store_path>(target, source)`.
#pragma once

#include <cstdint>

#include "kernels/row_copy.h"

#define MEMSYS_INLINE __attribute__((always_inline)) inline

namespace memsys {
namespace {

constexpr int64_t kLineBytes = 64;
// Asked for ahead: what a core keeps in flight, and of a row no more than makes the hardware's own prefetch start. That
// one fills the second cache, past the few line buffers that bound what software asks for: it is a fifth faster.
constexpr int64_t kAheadBytes = 2048;
constexpr int64_t kMaxAheadRows = 16;
constexpr int64_t kMinAheadRows = 2;
constexpr int64_t kRowAheadBytes = 256;

inline int64_t ahead_rows(int64_t row_bytes) {
  const int64_t rows = kAheadBytes / (row_bytes > 0 ? row_bytes : 1);
  return rows < kMinAheadRows ? kMinAheadRows : rows > kMaxAheadRows ? kMaxAheadRows : rows;
}

template <class Index>
MEMSYS_ISA MEMSYS_INLINE const char* row_of(const RowCopy& copy, int64_t position) {
  const auto index = static_cast<int64_t>(static_cast<const Index*>(copy.index)[position]);
  return copy.table + (index < 0 ? index + copy.row_count : index) * copy.row_stride_bytes;
}

MEMSYS_ISA MEMSYS_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(row + offset);
  __builtin_prefetch(row + bytes - 1);  // a row that starts inside a line ends in one more
}

// Calls take(position, row) for each row, with the rows after it on their way.
template <bool is_ordered, class Index, class Take>
MEMSYS_ISA MEMSYS_INLINE void visit(const RowCopy& copy, int64_t begin, int64_t end, const Take take) {
  const int64_t ahead = ahead_rows(copy.row_bytes);
  const int64_t prefetch_bytes = copy.row_bytes < kRowAheadBytes ? copy.row_bytes : kRowAheadBytes;
  const int64_t last_ahead = end - ahead;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t next = at + ahead;
    if (at < last_ahead) prefetch_row(row_of<Index>(copy, is_ordered ? copy.order[next] : next), prefetch_bytes);
    const int64_t position = is_ordered ? copy.order[at] : at;
    take(position, row_of<Index>(copy, position));
  }
}

template <StorePath path, class Index, class Registers>
MEMSYS_ISA void copy_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  const auto take = [&](int64_t position, const char* row) MEMSYS_ISA {
    registers.template copy<path>(copy.packed + position * copy.packed_stride_bytes, row);
  };
  copy.order == nullptr ? visit<false, Index>(copy, begin, end, take) : visit<true, Index>(copy, begin, end, take);
}

template <StorePath path, class Registers>
MEMSYS_ISA void gather_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  copy.index_type == IndexType::int64 ? copy_rows<path, int64_t>(copy, begin, end, registers)
                                      : copy_rows<path, int32_t>(copy, begin, end, registers);
}

// Whether every row of the output is whole lines, as stores past the caches need.
inline bool is_line_aligned(const RowCopy& copy) {
  const auto misfit = reinterpret_cast<uintptr_t>(copy.packed) | static_cast<uintptr_t>(copy.packed_stride_bytes) |
                      static_cast<uintptr_t>(copy.row_bytes);
  return misfit % kLineBytes == 0;
}

template <class Index>
MEMSYS_ISA int64_t find_bad_as(const RowCopy& copy, int64_t begin, int64_t end) {
  constexpr int64_t kBatch = 256;  // one question a batch, so that the loop within has no branch and is vectorised
  const auto* index = static_cast<const Index*>(copy.index);
  const auto is_bad = [&](int64_t at) MEMSYS_ISA {
    return static_cast<uint64_t>(static_cast<int64_t>(index[at])) + static_cast<uint64_t>(copy.row_count) >=
           2 * static_cast<uint64_t>(copy.row_count);
  };
  for (int64_t at = begin; at < end; at += kBatch) {
    const int64_t stop = end - at < kBatch ? end : at + kBatch;
    uint64_t bad_count = 0;
    for (int64_t one = at; one < stop; ++one) bad_count += is_bad(one) ? 1 : 0;
    if (bad_count == 0) continue;
    while (!is_bad(at)) ++at;
    return at;
  }
  return -1;
}

MEMSYS_ISA int64_t find_bad(const RowCopy& copy, int64_t begin, int64_t end) {
  return copy.index_type == IndexType::int32 ? find_bad_as<int32_t>(copy, begin, end)
                                             : find_bad_as<int64_t>(copy, begin, end);
}

}  // namespace
}  // namespace memsys
