// Stands in for cuda_device.cpp where CUDA was not compiled in, and says so.
#include "base/error.h"
#include "device/device.h"

namespace memsys {
namespace {

constexpr const char* kAbsent =
    "memsys was built without CUDA: install the CUDA toolkit (nvcc on PATH, 12.4 or newer) and build again, or go on "
    "with the CPU";

}  // namespace

std::shared_ptr<Device> make_cuda_device(int) { throw DeviceError(kAbsent); }

CudaStatus cuda_status() {
  CudaStatus status;
  status.message = kAbsent;
  return status;
}

}  // namespace memsys
