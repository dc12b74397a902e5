// The lanes of the aligned gather: which 16 bytes each lane of a warp reads, and how what was read becomes the output.
// Host memory is read over a bus in requests of at most one 128-byte line, so that every line of a row should be asked
// for once. A group of lanes reads the aligned 16-byte chunks that cover its row, whatever the row's address, and
// shifts the bytes into the output's own chunks in registers. The arithmetic is here, and is integers only: the CUDA
// kernel, its replay on the host and the counter of requests all call these functions.
#pragma once

#include <cstdint>

#include "kernels/gather_body.h"
#include "kernels/hd.h"

namespace memsys {

inline constexpr int kWarpLanes = 32;
inline constexpr int kChunkBytes = 16;
inline constexpr int kLineBytes = 128;
inline constexpr int64_t kGatherBlockThreads = 512;  // each with up to 64 bytes in flight: 32 KiB a block

// How a warp is shared out: groups of `lanes` lanes read a row each, `rows` rows after each other before the first is
// waited for, and of each row `turns` turns. Both keep several loads of a lane in flight: latency is what limits.
struct GatherShape {
  int lanes = 0;
  int rows = 0;
  int turns = 0;
  MEMSYS_HD constexpr int groups() const { return kWarpLanes / lanes; }
  MEMSYS_HD constexpr int round_rows() const { return groups() * rows; }
};

// Rows that up to 4 chunks cover at any address take one instruction. Others take a line a turn and 4 turns at once;
// wider groups waste lanes at a row's end, and are for rows so wide that this no longer counts. A round has at most 32
// rows, one for each lane to look up, hence 2 rows and not 4 at 2 lanes: those are 32 requests in flight anyway.
MEMSYS_HD constexpr GatherShape gather_shape(int64_t row_bytes) {
  if (row_bytes <= 2 * kChunkBytes - 15) return {2, 2, 1};
  if (row_bytes <= 4 * kChunkBytes - 15) return {4, 4, 1};
  if (row_bytes <= kLineBytes) return {8, 4, 1};
  if (row_bytes < 32 * kLineBytes) return {8, 1, 4};
  if (row_bytes < 64 * kLineBytes) return {16, 1, 4};
  return {32, 1, 4};
}

// The warps of the largest grid: as many blocks as the caller allows, and never more than any device runs at once.
MEMSYS_HD constexpr int64_t gather_warps(int64_t max_blocks) {
  constexpr int64_t kMostBlocks = 4096;
  return (max_blocks > 0 && max_blocks < kMostBlocks ? max_blocks : kMostBlocks) * (kGatherBlockThreads / kWarpLanes);
}

// How many consecutive rows a warp looks up at once, a row a lane. Few rows are spread over all the warps there may
// be; many are looked up 32 at a time, so that the wait for the index is paid once for 32 rows.
MEMSYS_HD constexpr int tile_rows(const GatherShape& shape, int64_t index_count, int64_t max_warps) {
  int rows = shape.round_rows();
  while (rows < kWarpLanes && rows * max_warps < index_count) rows *= 2;
  return rows;
}

// Which row of its tile a lane reads: that of lane `lane`, as the `row`-th in flight, of the round that begins at row
// `round` of the tile.
MEMSYS_HD constexpr int row_of_lane(const GatherShape& shape, int round, int row, int lane) {
  return round + row * shape.groups() + lane / shape.lanes;
}

// Where the chunks of a row are counted from. Wide groups start at a line, so that their turns end at lines too and no
// line is asked for in two turns; narrow ones have a single turn to read in.
MEMSYS_HD constexpr uint64_t chunks_begin(const RowSpan& row, int lanes) {
  const uint64_t alignment = lanes * kChunkBytes >= kLineBytes ? kLineBytes : kChunkBytes;
  return row.source & ~(alignment - 1);
}

// What one lane reads in one instruction. No bytes: nothing.
struct LaneRead {
  uint64_t address = 0;
  int bytes = 0;
};

// The aligned gather's lane -> (address, width). A chunk may begin before the row or end after it, by less than 16
// bytes: it lies in one page with a byte of the row, so that reading it is safe.
MEMSYS_HD constexpr LaneRead aligned_read(const RowSpan& row, int lanes, int64_t turn, int lane) {
  const uint64_t address = chunks_begin(row, lanes) + static_cast<uint64_t>(turn * lanes + lane % lanes) * kChunkBytes;
  const bool is_read =
      row.bytes > 0 && address + kChunkBytes > row.source && address < row.source + static_cast<uint64_t>(row.bytes);
  return {address, is_read ? kChunkBytes : 0};
}

// What torch's index_select does instead, for comparison: consecutive lanes take consecutive words of the flat output,
// and a warp knows no rows. `word` counts within the row.
MEMSYS_HD constexpr LaneRead flat_read(const RowSpan& row, int word_bytes, int64_t word) {
  return {row.source + static_cast<uint64_t>(word * word_bytes), word_bytes};
}

// --- From chunks of the source to chunks of the output ---------------------------------------------------------------

// How far the output's chunks lie behind the source's, 1 to 16. The lane that holds chunk n composes the output's
// chunk from bytes [shift, shift + 16) of chunks n - 1 and n; at 16, when both are aligned alike, that is chunk n.
MEMSYS_HD constexpr int realign_shift(const RowSpan& row) {
  return kChunkBytes - static_cast<int>((row.target - row.source) % kChunkBytes);
}

// The turns until a row is written. When the last chunk read holds bytes of two chunks of the output, they may take
// one more turn, which reads nothing.
MEMSYS_HD constexpr int64_t turn_count(const RowSpan& row, int lanes) {
  if (row.bytes <= 0) return 0;
  const auto head = static_cast<int64_t>(row.source - chunks_begin(row, lanes));
  const int64_t chunks = (row.bytes + head - realign_shift(row) + kChunkBytes - 1) / kChunkBytes + 1;
  return (chunks + lanes - 1) / lanes;
}

// The 32 bits that begin at bit `bits`, 0 to 31, of two words; nvcc makes one funnel shift of it.
MEMSYS_HD constexpr uint32_t funnel(uint32_t low, uint32_t high, unsigned bits) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> (bits & 31u));
}

// Bytes [shift, shift + 16) of the 32 that are `before` and `held`; shift from 0 to 16. By selects, because an array
// indexed by `shift` would live in memory.
MEMSYS_HD constexpr Chunk compose(const Chunk& before, const Chunk& held, int shift) {
  const bool by_four = (shift & 16) != 0, by_two = (shift & 8) != 0, by_one = (shift & 4) != 0;
  uint32_t a = by_four ? held.a : by_two ? before.c : before.a;
  uint32_t b = by_four ? held.b : by_two ? before.d : before.b;
  uint32_t c = by_four ? held.c : by_two ? held.a : before.c;
  uint32_t d = by_four ? held.d : by_two ? held.b : before.d;
  uint32_t e = by_two ? held.c : held.a;
  const uint32_t f = by_two ? held.d : held.b;
  a = by_one ? b : a;
  b = by_one ? c : b;
  c = by_one ? d : c;
  d = by_one ? e : d;
  e = by_one ? f : e;
  const auto bits = static_cast<unsigned>(shift % 4) * 8;
  return {funnel(a, b, bits), funnel(b, c, bits), funnel(c, d, bits), funnel(d, e, bits)};
}

// Writes bytes [begin, end) of a chunk whose place in the output is aligned, fewer than 16 of them, by stores that are
// aligned themselves: they grow towards the chunk's middle and shrink towards its end.
template <class Memory>
MEMSYS_HD inline void write_part(Memory memory, uint64_t address, const Chunk& chunk, int begin, int end) {
  int at = begin;
  Chunk rest = compose(chunk, {}, begin);
  const auto step = [&](auto word, bool is_due) {
    constexpr int kBytes = sizeof(word);
    if (!is_due || at + kBytes > end) return;
    if constexpr (kBytes == 8) {
      memory.store(address + static_cast<uint64_t>(at), (static_cast<uint64_t>(rest.b) << 32) | rest.a);
    } else {
      memory.store(address + static_cast<uint64_t>(at), static_cast<decltype(word)>(rest.a));
    }
    rest = compose(rest, {}, kBytes);
    at += kBytes;
  };
  step(uint8_t{}, at % 2 != 0);
  step(uint16_t{}, at % 4 != 0);
  step(uint32_t{}, at % 8 != 0);
  step(uint64_t{}, true);
  step(uint32_t{}, true);
  step(uint16_t{}, true);
  step(uint8_t{}, true);
}

// Writes what a lane's two neighbouring chunks hold of a chunk of the output: all of it in one store, or, at the row's
// two ends, what belongs to the row.
template <class Memory>
MEMSYS_HD inline void write_turn(Memory memory, const RowSpan& row, const GatherShape& shape, int64_t turn, int lane,
                                 const Chunk& before, const Chunk& held) {
  const int shift = realign_shift(row);
  const auto head = static_cast<int64_t>(row.source - chunks_begin(row, shape.lanes));
  // Where the row's bytes of this chunk of the output begin; negative at the row's begin.
  const int64_t offset = (turn * shape.lanes + lane % shape.lanes - 1) * kChunkBytes + shift - head;
  const int begin = offset < 0 ? static_cast<int>(offset > -kChunkBytes ? -offset : kChunkBytes) : 0;
  const int64_t left = row.bytes - offset;
  const int end = left < kChunkBytes ? static_cast<int>(left > 0 ? left : 0) : kChunkBytes;
  if (begin >= end) return;
  const Chunk chunk = compose(before, held, shift);
  const uint64_t address = row.target + static_cast<uint64_t>(offset);
  if (end - begin == kChunkBytes) {
    memory.store(address, chunk);
  } else {
    write_part(memory, address, chunk, begin, end);
  }
}

}  // namespace memsys
