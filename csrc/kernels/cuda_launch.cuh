// How every CUDA launcher starts its kernel, and what it says when the driver refuses.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "base/error.h"

namespace memsys::cuda_kernels {

// What a launch needs besides kernel and arguments; `what` ends "CUDA refused to launch ...".
struct LaunchShape {
  std::string what;
  int64_t blocks;
  int64_t threads;
  uintptr_t stream;
};

// Launches through the call that returns its own error: cudaGetLastError() after <<<>>> would also return, and blame
// on this launch, what an earlier call of somebody else left behind.
template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.stream = reinterpret_cast<cudaStream_t>(shape.stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // ours to report, so not left behind for the next caller
  throw DeviceError("CUDA refused to launch " + shape.what + ": " + cudaGetErrorString(status) +
                    "; `memsys doctor` checks driver and device");
}

}  // namespace memsys::cuda_kernels
