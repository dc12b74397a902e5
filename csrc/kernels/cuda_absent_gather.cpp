// The CUDA gathers of a build without nvcc: they say so, instead of missing at link time.
#include "base/error.h"
#include "kernels/gather_launch.h"

namespace memsys::cuda_kernels {
namespace {

[[noreturn]] void throw_absent() {
  throw DeviceError("a CUDA gather was asked for, but this build has none: build again where nvcc is on PATH");
}

}  // namespace

void gather_rows_plain(const RowGather& /*gather*/, uintptr_t /*stream*/) { throw_absent(); }
void gather_rows_aligned(const RowGather& /*gather*/, int64_t /*max_blocks*/, uintptr_t /*stream*/) { throw_absent(); }

}  // namespace memsys::cuda_kernels
