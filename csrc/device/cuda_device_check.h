// Turns what the CUDA runtime answers into typed errors, with the call, its code and its text.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "base/error.h"

namespace memsys {

// The runtime remembers an error until somebody reads it; left there, it would surface in torch's next call.
inline void clear_cuda_error() noexcept { static_cast<void>(cudaGetLastError()); }

inline std::string describe_cuda_error(const char* call, cudaError_t code) {
  return std::string(call) + " failed with " + cudaGetErrorName(code) + " (" + std::to_string(static_cast<int>(code)) +
         "): " + cudaGetErrorString(code);
}

[[noreturn]] inline void throw_cuda_error(const char* call, cudaError_t code) {
  clear_cuda_error();
  throw DeviceError(describe_cuda_error(call, code));
}

}  // namespace memsys

#define MEMSYS_CUDA_CHECK(call)                 \
  do {                                          \
    const cudaError_t code_ = (call);           \
    if (code_ != cudaSuccess) [[unlikely]]      \
      ::memsys::throw_cuda_error(#call, code_); \
  } while (false)
