// The launchers of the gather: one namespace a side, the same calls in both, as in launch.h. They return at once on
// no indices, allocate nothing, and check nothing but the launch (DeviceError): pointers, counts and strides are the
// caller's to check, and *bad_position is the caller's to set before and to read after the stream has come that far.
#pragma once

#include <cstdint>

#include "kernels/gather_body.h"

namespace memsys::host_kernels {

// The plain body in a loop: what the others are checked against.
void gather_rows_plain(const RowGather& gather, uintptr_t stream);
// The aligned kernel, replayed warp by warp and lane by lane: a check of its arithmetic, and no way to gather fast.
// It reads, as the kernel does, up to 15 bytes before and after a row.
void gather_rows_aligned(const RowGather& gather, int64_t max_blocks, uintptr_t stream);

}  // namespace memsys::host_kernels

// Without CUDA in the build each of these throws DeviceError that says so.
namespace memsys::cuda_kernels {

// A lane a word, the widest that rows and addresses allow.
void gather_rows_plain(const RowGather& gather, uintptr_t stream);
// Asks for every 128-byte line of a row once. At most `max_blocks` blocks of 512 threads, so that it leaves
// multiprocessors to others; 0: as many as there is work for.
void gather_rows_aligned(const RowGather& gather, int64_t max_blocks, uintptr_t stream);

}  // namespace memsys::cuda_kernels
