// What CUDA this build wants and what the machine has, for `doctor`. Works without a driver and touches no GPU.
#include <cuda_runtime_api.h>

#include <string>

#include "device/cuda_device_check.h"
#include "device/device.h"

namespace memsys {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The oldest Linux driver branch that runs a statically linked runtime of this major version (CUDA compatibility
// guide: minor version compatibility).
std::string needed_driver(int runtime_version) {
  return runtime_version >= 13000 ? "580 or newer (CUDA 13.0)" : "525 or newer (CUDA 12.0)";
}

std::string describe(const CudaStatus& status, cudaError_t counted) {
  const std::string built = "built for CUDA " + version_text(status.runtime_version);
  const std::string needed = "needs an NVIDIA driver " + needed_driver(status.runtime_version);
  if (status.driver_version == 0) return built + "; no driver found, " + needed + "; going on with the CPU";
  const std::string found = "the driver found supports CUDA " + version_text(status.driver_version);
  if (status.driver_version / 1000 < status.runtime_version / 1000)
    return built + "; " + found + ", " + needed + "; going on with the CPU";
  if (counted != cudaSuccess && counted != cudaErrorNoDevice)
    return built + "; " + found + ", but " + describe_cuda_error("cudaGetDeviceCount", counted) +
           "; going on with the CPU";
  if (status.device_count == 0)
    return built + "; " + found + ", but no GPU is visible (see CUDA_VISIBLE_DEVICES); going on with the CPU";
  return built + "; " + found + "; " + std::to_string(status.device_count) + " GPU" +
         (status.device_count == 1 ? "" : "s");
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status;
  status.built = true;
  if (cudaRuntimeGetVersion(&status.runtime_version) != cudaSuccess) status.runtime_version = CUDART_VERSION;
  if (cudaDriverGetVersion(&status.driver_version) != cudaSuccess) status.driver_version = 0;
  const cudaError_t counted = cudaGetDeviceCount(&status.device_count);
  if (counted != cudaSuccess) status.device_count = 0;
  clear_cuda_error();
  status.message = describe(status, counted);
  return status;
}

}  // namespace memsys
