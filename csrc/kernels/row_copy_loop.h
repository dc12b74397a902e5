// The loops that every row copy backend shares. A backend's file defines MEMSYS_ISA (the target attribute under which
// this is compiled) and then includes it: all that is here lives in that file alone, so that no instruction of one
// backend leaks into another.
//
// A backend's Registers class says how bytes move: `copy(target, source)` copies one row, `copy_bytes(target, source,
// bytes)` any number of bytes, and `stream_lines(target, source, bytes)` whole aligned lines, past the caches.
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
// Rows on their way out past the caches; small enough to stay in the first one.
constexpr int64_t kBlockBytes = 4096;

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

// A window on the output: bytes are appended in order and leave as whole lines. The block lies in its lines as the
// output does; the first and the last line may be shared with other threads, so only our bytes of them are written.
template <class Registers>
class LineWriter {
 public:
  MEMSYS_ISA explicit LineWriter(char* target, const Registers& registers) : registers_(registers) {
    head_bytes_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % kLineBytes);
    target_ = target - head_bytes_;
    filled_bytes_ = head_bytes_;
  }

  // One row of at most a block, or a piece of a longer one.
  MEMSYS_ISA MEMSYS_INLINE void append_row(const char* row) {
    registers_.copy(block_ + filled_bytes_, row);
    advance(registers_.row_bytes);
  }
  MEMSYS_ISA MEMSYS_INLINE void append(const char* bytes, int64_t count) {
    registers_.copy_bytes(block_ + filled_bytes_, bytes, count);
    advance(count);
  }
  MEMSYS_ISA void finish() {
    leave(filled_bytes_ / kLineBytes * kLineBytes);
    if (filled_bytes_ > head_bytes_)
      registers_.copy_bytes(target_ + head_bytes_, block_ + head_bytes_, filled_bytes_ - head_bytes_);
  }

 private:
  MEMSYS_ISA MEMSYS_INLINE void advance(int64_t bytes) {
    filled_bytes_ += bytes;
    if (filled_bytes_ >= kBlockBytes) leave(filled_bytes_ / kLineBytes * kLineBytes);
  }
  // The block's first `bytes`, whole lines, go out; what is left moves to its front.
  MEMSYS_ISA void leave(int64_t bytes) {
    if (bytes == 0) return;
    int64_t begin = 0;
    if (head_bytes_ > 0) {
      registers_.copy_bytes(target_ + head_bytes_, block_ + head_bytes_, kLineBytes - head_bytes_);
      begin = kLineBytes;
      head_bytes_ = 0;
    }
    registers_.stream_lines(target_ + begin, block_ + begin, bytes - begin);
    registers_.copy_line(block_, block_ + bytes);
    target_ += bytes;
    filled_bytes_ -= bytes;
  }

  const Registers registers_;
  char* target_;
  int64_t head_bytes_ = 0, filled_bytes_ = 0;
  alignas(kLineBytes) char block_[2 * kBlockBytes + 2 * kLineBytes];
};

template <class Index, class Registers>
MEMSYS_ISA void stream_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  LineWriter<Registers> writer(copy.packed + begin * copy.packed_stride_bytes, registers);
  if (copy.row_bytes <= kBlockBytes) {
    visit<false, Index>(copy, begin, end, [&](int64_t, const char* row) MEMSYS_ISA { writer.append_row(row); });
  } else {
    visit<false, Index>(copy, begin, end, [&](int64_t, const char* row) MEMSYS_ISA {
      for (int64_t at = 0; at < copy.row_bytes; at += kBlockBytes)
        writer.append(row + at, copy.row_bytes - at < kBlockBytes ? copy.row_bytes - at : kBlockBytes);
    });
  }
  writer.finish();
}

template <class Index, class Registers>
MEMSYS_ISA void copy_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  const auto take = [&](int64_t position, const char* row)
                        MEMSYS_ISA { registers.copy(copy.packed + position * copy.packed_stride_bytes, row); };
  copy.order == nullptr ? visit<false, Index>(copy, begin, end, take) : visit<true, Index>(copy, begin, end, take);
}

template <class Registers>
MEMSYS_ISA void gather_rows(const RowCopy& copy, int64_t begin, int64_t end, const Registers registers) {
  const bool is_wide = copy.index_type == IndexType::int64;
  if constexpr (Registers::can_stream) {
    if (copy.store_path == StorePath::streaming && copy.order == nullptr && copy.packed_stride_bytes == copy.row_bytes)
      return is_wide ? stream_rows<int64_t>(copy, begin, end, registers)
                     : stream_rows<int32_t>(copy, begin, end, registers);
  }
  is_wide ? copy_rows<int64_t>(copy, begin, end, registers) : copy_rows<int32_t>(copy, begin, end, registers);
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
