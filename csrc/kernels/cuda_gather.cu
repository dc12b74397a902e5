// The gather of rows as kernels. The aligned one reads host memory over the bus in the fewest requests there can be,
// and keeps several 16-byte loads of every lane in flight; gather_lanes.h says which lane reads and writes what.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/cuda_launch.cuh"
#include "kernels/gather_lanes.h"
#include "kernels/gather_launch.h"

namespace memsys::cuda_kernels {
namespace {

constexpr unsigned kAllLanes = ~0u;

struct DeviceMemory {
  // Marked as read once, so that the table's lines are the first to leave the caches.
  __device__ Chunk load(uint64_t address) const {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(address));
    return {words.x, words.y, words.z, words.w};
  }
  // Said to be global memory: a pointer made from an integer alone would be taken for one of any kind.
  template <class Word>
  __device__ void store(uint64_t address, Word word) const {
    *static_cast<Word*>(__cvta_global_to_generic(address)) = word;
  }
  __device__ void store(uint64_t address, const Chunk& chunk) const {
    *static_cast<uint4*>(__cvta_global_to_generic(address)) = make_uint4(chunk.a, chunk.b, chunk.c, chunk.d);
  }
};

__device__ void report(const RowGather& gather, int64_t position) {
  if (gather.bad_position != nullptr) atomicMin(gather.bad_position, static_cast<unsigned long long>(position));
}

__device__ RowSpan broadcast(const RowSpan& row, int lane) {
  return {__shfl_sync(kAllLanes, row.source, lane), __shfl_sync(kAllLanes, row.target, lane),
          __shfl_sync(kAllLanes, row.bytes, lane)};
}

// The chunk of the lane before in the group; the first lane gets what the last one held in the turn before. One
// rotation does both, since nobody needs what the last lane holds now.
template <int kLanes>
__device__ Chunk from_neighbour(const Chunk& last, const Chunk& held, int lane) {
  const bool is_last = lane % kLanes == kLanes - 1;
  const Chunk given{is_last ? last.a : held.a, is_last ? last.b : held.b, is_last ? last.c : held.c,
                    is_last ? last.d : held.d};
  const int neighbour = (lane + kLanes - 1) % kLanes;
  return {__shfl_sync(kAllLanes, given.a, neighbour, kLanes), __shfl_sync(kAllLanes, given.b, neighbour, kLanes),
          __shfl_sync(kAllLanes, given.c, neighbour, kLanes), __shfl_sync(kAllLanes, given.d, neighbour, kLanes)};
}

// kRows rows of each group, kTurns turns at a time: first all the loads, then all the stores. Every loop is unrolled,
// so that what is held stays in registers. The whole warp takes as many turns as its longest row.
template <int kLanes, int kRows, int kTurns>
__device__ void gather_round(const RowSpan (&rows)[kRows], int lane) {
  constexpr GatherShape kShape{kLanes, kRows, kTurns};
  const DeviceMemory memory;
  Chunk last[kRows];
  int64_t turns = 0;
#pragma unroll
  for (int row = 0; row < kRows; ++row) turns = max(turns, turn_count(rows[row], kLanes));
  for (int64_t first = 0; __any_sync(kAllLanes, first < turns); first += kTurns) {
    Chunk held[kRows][kTurns];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const LaneRead read = aligned_read(rows[row], kLanes, first + turn, lane);
        if (read.bytes > 0) held[row][turn] = memory.load(read.address);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const Chunk before = from_neighbour<kLanes>(last[row], held[row][turn], lane);
        write_turn(memory, rows[row], kShape, first + turn, lane, before, held[row][turn]);
        last[row] = held[row][turn];
      }
    }
  }
}

// A warp looks up a tile of rows, one a lane, and then gathers them round by round. One block a multiprocessor is
// enough, so that the compiler may take the registers it needs; by itself it may aim at more blocks, and spill.
template <int kLanes, int kRows, int kTurns>
__global__ void __launch_bounds__(kGatherBlockThreads, 1) gather_aligned_kernel(RowGather gather, int tile_row_count) {
  constexpr GatherShape kShape{kLanes, kRows, kTurns};
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarpLanes;
  for (int64_t tile = warp * tile_row_count; tile < gather.index_count; tile += warps * tile_row_count) {
    const RowSpan own = lane < tile_row_count ? find_row(gather, tile + lane) : RowSpan{};
    if (own.bytes == kOutOfRange) report(gather, tile + lane);
    for (int round = 0; round < tile_row_count; round += kShape.round_rows()) {
      RowSpan rows[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) rows[row] = broadcast(own, row_of_lane(kShape, round, row, lane));
      gather_round<kLanes, kRows, kTurns>(rows, lane);
    }
  }
}

template <class Word>
__global__ void __launch_bounds__(kGatherBlockThreads) gather_plain_kernel(GatherWord<Word> body, int64_t word_count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t word = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; word < word_count; word += stride)
    if (!body(word)) report(body.gather, body.position(word));
}

LaunchShape shape_of(const RowGather& gather, int64_t warps, uintptr_t stream) {
  const int64_t threads = std::min(warps * kWarpLanes, kGatherBlockThreads);
  return {
      "a gather of " + std::to_string(gather.index_count) + " rows of " + std::to_string(gather.row_bytes) + " bytes",
      (warps * kWarpLanes + threads - 1) / threads, threads, stream};
}

template <int kLanes, int kRows, int kTurns>
void launch_aligned(const RowGather& gather, int64_t max_blocks, uintptr_t stream) {
  const int64_t max_warps = gather_warps(max_blocks);
  const int rows = tile_rows({kLanes, kRows, kTurns}, gather.index_count, max_warps);
  const int64_t warps = std::min((gather.index_count + rows - 1) / rows, max_warps);
  launch(shape_of(gather, warps, stream), gather_aligned_kernel<kLanes, kRows, kTurns>, gather, rows);
}

template <class Word>
void launch_plain(const RowGather& gather, uintptr_t stream) {
  const GatherWord<Word> body{gather};
  const int64_t warps = std::min((body.word_count() + kWarpLanes - 1) / kWarpLanes, gather_warps(0));
  launch(shape_of(gather, warps, stream), gather_plain_kernel<Word>, body, body.word_count());
}

}  // namespace

void gather_rows_plain(const RowGather& gather, uintptr_t stream) {
  if (gather.index_count <= 0) return;
  switch (natural_word_bytes(gather)) {
    case 16:
      return launch_plain<Chunk>(gather, stream);
    case 8:
      return launch_plain<uint64_t>(gather, stream);
    case 4:
      return launch_plain<uint32_t>(gather, stream);
    case 2:
      return launch_plain<uint16_t>(gather, stream);
    default:
      return launch_plain<uint8_t>(gather, stream);
  }
}

void gather_rows_aligned(const RowGather& gather, int64_t max_blocks, uintptr_t stream) {
  if (gather.index_count <= 0) return;
  const GatherShape shape = gather_shape(gather.row_bytes);
  if (shape.lanes == 2) return launch_aligned<2, 2, 1>(gather, max_blocks, stream);
  if (shape.lanes == 4) return launch_aligned<4, 4, 1>(gather, max_blocks, stream);
  if (shape.lanes == 8 && shape.turns == 1) return launch_aligned<8, 4, 1>(gather, max_blocks, stream);
  if (shape.lanes == 8) return launch_aligned<8, 1, 4>(gather, max_blocks, stream);
  if (shape.lanes == 16) return launch_aligned<16, 1, 4>(gather, max_blocks, stream);
  return launch_aligned<32, 1, 4>(gather, max_blocks, stream);
}

}  // namespace memsys::cuda_kernels
