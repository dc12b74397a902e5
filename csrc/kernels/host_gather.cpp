// The gather on the host: the plain body in a loop, and the aligned kernel replayed. The replay keeps each lane's
// registers in an array and does a whole warp's step at a time, so that what the kernel leaves to shuffles and
// predicates is tested where there is no GPU.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/gather_lanes.h"
#include "kernels/gather_launch.h"

namespace memsys::host_kernels {
namespace {

struct HostMemory {
  Chunk load(uint64_t address) const {
    Chunk chunk;
    std::memcpy(&chunk, reinterpret_cast<const void*>(address), sizeof(chunk));
    return chunk;
  }
  template <class Word>
  void store(uint64_t address, const Word& word) const {
    std::memcpy(__builtin_assume_aligned(reinterpret_cast<void*>(address), sizeof(Word)), &word, sizeof(Word));
  }
};

void report(const RowGather& gather, int64_t position) {
  if (gather.bad_position == nullptr) return;
  *gather.bad_position = std::min(*gather.bad_position, static_cast<unsigned long long>(position));
}

template <class Word>
void gather_words(const RowGather& gather) {
  const GatherWord<Word> body{gather};
  for (int64_t word = 0; word < body.word_count(); ++word)
    if (!body(word)) report(gather, body.position(word));
}

using LaneRows = std::array<RowSpan, kWarpLanes>;
using LaneChunks = std::array<Chunk, kWarpLanes>;

// Each lane's chunk of the lane before it in the group; the first lane's is the last lane's of the turn before.
LaneChunks from_neighbours(const LaneChunks& last, const LaneChunks& held, size_t lanes) {
  LaneChunks before;
  for (size_t lane = 0; lane < kWarpLanes; ++lane)
    before[lane] = lane % lanes == 0 ? last[lane + lanes - 1] : held[lane - 1];
  return before;
}

// One row of each group, turn by turn. Without latency there is nothing to keep in flight, and no order to keep.
void replay_rows(const LaneRows& rows, const GatherShape& shape) {
  const HostMemory memory;
  int64_t turns = 0;
  for (const RowSpan& row : rows) turns = std::max(turns, turn_count(row, shape.lanes));
  LaneChunks last;
  for (int64_t turn = 0; turn < turns; ++turn) {
    LaneChunks held;
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const auto at = static_cast<size_t>(lane);
      const LaneRead read = aligned_read(rows[at], shape.lanes, turn, lane);
      if (read.bytes > 0) held[at] = memory.load(read.address);
    }
    const LaneChunks before = from_neighbours(last, held, static_cast<size_t>(shape.lanes));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const auto at = static_cast<size_t>(lane);
      write_turn(memory, rows[at], shape, turn, lane, before[at], held[at]);
    }
    last = held;
  }
}

void replay_tile(const RowGather& gather, const GatherShape& shape, int64_t tile, int tile_row_count) {
  LaneRows own;
  for (int row = 0; row < tile_row_count; ++row) {
    own[static_cast<size_t>(row)] = find_row(gather, tile + row);
    if (own[static_cast<size_t>(row)].bytes == kOutOfRange) report(gather, tile + row);
  }
  for (int round = 0; round < tile_row_count; round += shape.round_rows()) {
    for (int row = 0; row < shape.rows; ++row) {
      LaneRows rows;
      for (int lane = 0; lane < kWarpLanes; ++lane)
        rows[static_cast<size_t>(lane)] = own[static_cast<size_t>(row_of_lane(shape, round, row, lane))];
      replay_rows(rows, shape);
    }
  }
}

}  // namespace

void gather_rows_plain(const RowGather& gather, uintptr_t /*stream*/) {
  switch (natural_word_bytes(gather)) {
    case 16:
      return gather_words<Chunk>(gather);
    case 8:
      return gather_words<uint64_t>(gather);
    case 4:
      return gather_words<uint32_t>(gather);
    case 2:
      return gather_words<uint16_t>(gather);
    default:
      return gather_words<uint8_t>(gather);
  }
}

void gather_rows_aligned(const RowGather& gather, int64_t max_blocks, uintptr_t /*stream*/) {
  const GatherShape shape = gather_shape(gather.row_bytes);
  const int rows = tile_rows(shape, gather.index_count, gather_warps(max_blocks));
  for (int64_t tile = 0; tile < gather.index_count; tile += rows) replay_tile(gather, shape, tile, rows);
}

}  // namespace memsys::host_kernels
