// The CUDA launchers on any machine: they run, or a typed error says why they cannot.
#include <string>

#include "base/error.h"
#include "csrc/check.h"
#include "kernels/launch.h"

using namespace memsys;

TEST(cuda_launch_without_a_device_is_a_typed_error) {
  try {
    cuda_kernels::delay(1, 0);
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    CHECK(message.find("CUDA") != std::string::npos);
    CHECK(message.find("doctor") != std::string::npos || message.find("nvcc") != std::string::npos);
    return;
  }
  SKIP("a CUDA device is here: the launch worked");
}

TEST(cuda_delay_is_bounded) { CHECK_THROWS(cuda_kernels::delay(cuda_kernels::kMaxDelayUs + 1, 0), Error); }
