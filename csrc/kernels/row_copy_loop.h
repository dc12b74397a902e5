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
// What is asked for ahead. Narrow rows come to the first cache, as many as a core keeps in flight. Of wide rows the
// first bytes are asked for, to the second cache: they make the hardware's own prefetch start there, which fetches the
// rest past the few line buffers that bound what software asks for, and leaves those to the stores; that takes more
// time, so it starts further ahead.
struct Ahead {
  int64_t rows;
  int64_t row_bytes;  // of each
  bool is_wide;
};
constexpr int64_t kWideBytes = 512;
constexpr int64_t kMinAheadRows = 2;
constexpr int64_t kMaxAheadRows = 16;

inline Ahead ahead_of(int64_t row_bytes) {
  const bool is_wide = row_bytes >= kWideBytes;
  const int64_t bytes = is_wide ? 8192 : 2048, most = is_wide ? 512 : 256;
  const int64_t rows = bytes / (row_bytes > 0 ? row_bytes : 1);
  return {rows < kMinAheadRows   ? kMinAheadRows
          : rows > kMaxAheadRows ? kMaxAheadRows
                                 : rows,
          row_bytes < most ? row_bytes : most, is_wide};
}

template <class Index>
MEMSYS_ISA MEMSYS_INLINE const char* row_of(const RowCopy& copy, int64_t position) {
  const auto index = static_cast<int64_t>(static_cast<const Index*>(copy.index)[position]);
  return copy.table + (index < 0 ? index + copy.row_count : index) * copy.row_stride_bytes;
}

template <int locality>
MEMSYS_ISA MEMSYS_INLINE void prefetch_lines(const char* row, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(row + offset, 0, locality);
}

MEMSYS_ISA MEMSYS_INLINE void prefetch_row(const char* row, const Ahead& ahead, int64_t row_bytes) {
  if (ahead.is_wide) return prefetch_lines<2>(row, ahead.row_bytes);
  prefetch_lines<3>(row, ahead.row_bytes);
  if (ahead.row_bytes == row_bytes) __builtin_prefetch(row + row_bytes - 1);  // begun inside a line, it ends in another
}

// Calls take(position, row) for each row, with the rows after it on their way.
template <class Index, class Take>
MEMSYS_ISA MEMSYS_INLINE void visit(const RowCopy& copy, int64_t begin, int64_t end, const Take take) {
  const Ahead ahead = ahead_of(copy.row_bytes);
  const int64_t row_bytes = copy.row_bytes, last_ahead = end - ahead.rows;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t next = at + ahead.rows;
    if (at < last_ahead) prefetch_row(row_of<Index>(copy, next), ahead, row_bytes);
    take(at, row_of<Index>(copy, at));
  }
}

template <StorePath path, class Index, class Registers>
MEMSYS_ISA void copy_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  const auto take = [&](int64_t position, const char* row) MEMSYS_ISA {
    registers.template copy<path>(copy.packed + position * copy.packed_stride_bytes, row);
  };
  visit<Index>(copy, begin, end, take);
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
