// The bodies as grid-stride kernels: any grid covers any count, so a launch asks the device nothing.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "kernels/cuda_launch.cuh"
#include "kernels/launch.h"

namespace memsys::cuda_kernels {
namespace {

constexpr int64_t kBlockThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // more than any device runs at once

__device__ int64_t first_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t grid_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <class Body>
__global__ void for_each_kernel(Body body, int64_t count) {
  for (int64_t index = first_index(); index < count; index += grid_stride()) body(index);
}

template <class Predicate>
__global__ void count_kernel(Predicate predicate, int64_t count, unsigned long long* total) {
  unsigned long long mine = 0;
  for (int64_t index = first_index(); index < count; index += grid_stride()) mine += predicate(index) ? 1 : 0;
  if (mine > 0) atomicAdd(total, mine);
}

__device__ int64_t now_ns() {
  int64_t time_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}

__global__ void delay_kernel(int64_t duration_ns) {
  const int64_t begin_ns = now_ns();
  while (now_ns() - begin_ns < duration_ns) __nanosleep(500);
}

LaunchShape shape_of(const char* name, int64_t count, uintptr_t stream) {
  return {std::string(name) + " over " + std::to_string(count) + " elements",
          std::min((count + kBlockThreads - 1) / kBlockThreads, kMaxBlocks), std::min(count, kBlockThreads), stream};
}

}  // namespace

void fill_pattern(const PatternSpan& span, uintptr_t stream) {
  if (span.word_count <= 0) return;
  launch(shape_of("fill_pattern", span.word_count, stream), for_each_kernel<FillPattern>, FillPattern{span},
         span.word_count);
}

void count_mismatches(const PatternSpan& span, uint64_t* mismatch_count, uintptr_t stream) {
  if (span.word_count <= 0) return;
  launch(shape_of("count_mismatches", span.word_count, stream), count_kernel<IsMismatch>, IsMismatch{span},
         span.word_count, reinterpret_cast<unsigned long long*>(mismatch_count));
}

void delay(int64_t duration_us, uintptr_t stream) {
  if (duration_us <= 0) return;
  MEMSYS_EXPECT(duration_us <= kMaxDelayUs, InputError,
                "a delay of " + std::to_string(duration_us) + " us was asked for; the most is " +
                    std::to_string(kMaxDelayUs) + ", so that a test cannot hang a device");
  launch(shape_of("delay", 1, stream), delay_kernel, duration_us * 1000);
}

}  // namespace memsys::cuda_kernels
