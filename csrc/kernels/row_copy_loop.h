// The loops that every row copy backend shares. A backend's file defines MEMSYS_ISA (the target attribute under which
// this is compiled) and then includes it: all that is here lives in that file alone, so that no instruction of one
// backend leaks into another.
//
// A backend's Registers class says how one row moves: `copy<store_path>(target, source)`. For the narrow widths that
// vectors of numbers have there are loops of their own, in which nothing about a row is asked again.
#pragma once

#include <cstdint>

#include "kernels/row_copy.h"

#define MEMSYS_INLINE __attribute__((always_inline)) inline
// For lambdas. A compiler may take one that only prefetches for one without effect, and leave out calls to it.
#define MEMSYS_INLINE_BODY MEMSYS_ISA __attribute__((always_inline))

namespace memsys {
namespace {

constexpr int64_t kLineBytes = 64;
// What is asked for ahead. Narrow rows come to the first cache, as many as a core keeps in flight. Of wide rows the
// first bytes are asked for, to the second cache: they make the hardware's own prefetch start there, which fetches the
// rest past the few line buffers that bound what software asks for, and leaves those to the stores; that takes more
// time, so it starts further ahead.
constexpr int64_t kWideBytes = 512;
constexpr int64_t kAheadBytes = 2048, kWideAheadBytes = 8192;
constexpr int64_t kRowAheadBytes = 256, kWideRowAheadBytes = 512;
constexpr int64_t kMinAheadRows = 2, kMaxAheadRows = 16;

inline int64_t ahead_rows(int64_t row_bytes) {
  const int64_t bytes = row_bytes >= kWideBytes ? kWideAheadBytes : kAheadBytes;
  const int64_t rows = bytes / (row_bytes > 0 ? row_bytes : 1);
  return rows < kMinAheadRows ? kMinAheadRows : rows > kMaxAheadRows ? kMaxAheadRows : rows;
}

// Where the rows of an index are: a copy of what that takes, which stores of rows, that may alias anything, leave
// alone.
template <class Index>
struct Rows {
  const Index* index;
  const char* table;
  int64_t stride_bytes, count;

  explicit Rows(const RowCopy& copy)
      : index(static_cast<const Index*>(copy.index)),
        table(copy.table),
        stride_bytes(copy.row_stride_bytes),
        count(copy.row_count) {}
  MEMSYS_ISA MEMSYS_INLINE const char* at(int64_t position) const {
    const auto one = static_cast<int64_t>(index[position]);
    return table + (one < 0 ? one + count : one) * stride_bytes;
  }
};

template <int locality>
MEMSYS_ISA MEMSYS_INLINE void prefetch_lines(const char* row, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(row + offset, 0, locality);
}

// Calls take(position, row) for each row, and prefetch(row) for one that comes `ahead` rows later.
template <class Index, class Prefetch, class Take>
MEMSYS_ISA MEMSYS_INLINE void visit(const Rows<Index> rows, int64_t begin, int64_t end, int64_t ahead,
                                    const Prefetch prefetch, const Take take) {
  int64_t at = begin;
  for (; at < end - ahead; ++at) {
    prefetch(rows.at(at + ahead));
    take(at, rows.at(at));
  }
  for (; at < end; ++at) take(at, rows.at(at));
}

template <StorePath path, class Index, class Registers>
MEMSYS_ISA void copy_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  const Rows<Index> rows(copy);
  const int64_t bytes = copy.row_bytes, ahead = ahead_rows(bytes), packed_stride_bytes = copy.packed_stride_bytes;
  char* const packed = copy.packed;
  const auto take = [=](int64_t position, const char* row) MEMSYS_INLINE_BODY {
    registers.template copy<path>(packed + position * packed_stride_bytes, row);
  };
  const auto whole_row = [=](const char* row) MEMSYS_INLINE_BODY {
    prefetch_lines<3>(row, bytes);
    __builtin_prefetch(row + bytes - 1);  // begun inside a line, it ends in another
  };
  const auto narrow_row = [](const char* row) MEMSYS_INLINE_BODY { prefetch_lines<3>(row, kRowAheadBytes); };
  const auto wide_row = [](const char* row) MEMSYS_INLINE_BODY { prefetch_lines<2>(row, kWideRowAheadBytes); };
  if (bytes <= kRowAheadBytes) return visit(rows, begin, end, ahead, whole_row, take);
  if (bytes < kWideBytes) return visit(rows, begin, end, ahead, narrow_row, take);
  visit(rows, begin, end, ahead, wide_row, take);
}

template <int64_t bytes, class Index>
MEMSYS_ISA void copy_narrow_rows(const RowCopy& copy, int64_t begin, int64_t end) {
  constexpr int64_t kAlignment = bytes < kLineBytes ? bytes : kLineBytes;
  const Rows<Index> rows(copy);
  const int64_t ahead = ahead_rows(bytes), packed_stride_bytes = copy.packed_stride_bytes;
  char* const packed = copy.packed;
  const auto take = [=](int64_t position, const char* row)
                        MEMSYS_INLINE_BODY { __builtin_memcpy(packed + position * packed_stride_bytes, row, bytes); };
  const auto aligned_row = [](const char* row) MEMSYS_INLINE_BODY { prefetch_lines<3>(row, bytes); };
  const auto any_row = [](const char* row) MEMSYS_INLINE_BODY {
    prefetch_lines<3>(row, bytes);
    __builtin_prefetch(row + bytes - 1);
  };
  const auto misfit = reinterpret_cast<uintptr_t>(rows.table) | static_cast<uintptr_t>(rows.stride_bytes);
  misfit % kAlignment == 0 ? visit(rows, begin, end, ahead, aligned_row, take)
                           : visit(rows, begin, end, ahead, any_row, take);
}

template <StorePath path, class Index, class Registers>
MEMSYS_ISA void copy_rows_of_width(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  if constexpr (path == StorePath::cached) switch (copy.row_bytes) {
      case 4:
        return copy_narrow_rows<4, Index>(copy, begin, end);
      case 8:
        return copy_narrow_rows<8, Index>(copy, begin, end);
      case 16:
        return copy_narrow_rows<16, Index>(copy, begin, end);
      case 32:
        return copy_narrow_rows<32, Index>(copy, begin, end);
      case 64:
        return copy_narrow_rows<64, Index>(copy, begin, end);
      case 128:
        return copy_narrow_rows<128, Index>(copy, begin, end);
      default:
        break;
    }
  copy_rows<path, Index>(copy, begin, end, registers);
}

template <StorePath path, class Registers>
MEMSYS_ISA void gather_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  copy.index_type == IndexType::int64 ? copy_rows_of_width<path, int64_t>(copy, begin, end, registers)
                                      : copy_rows_of_width<path, int32_t>(copy, begin, end, registers);
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
