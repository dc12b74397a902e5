// A CUDA GPU behind the seam, by the runtime's own calls. Streams and events are the runtime's handles, so that
// torch's stream is ours. Compiled by the host compiler; the runtime is linked statically.
#include <cuda_runtime_api.h>

#include "base/bytes.h"
#include "base/error.h"
#include "device/cuda_device_check.h"
#include "device/device.h"

namespace memsys {
namespace {

cudaStream_t native(StreamView stream) { return reinterpret_cast<cudaStream_t>(stream.value); }
cudaEvent_t native(EventId event) { return reinterpret_cast<cudaEvent_t>(event.value); }

// Makes a device current for one call and puts the caller's back: torch relies on its own.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    MEMSYS_CUDA_CHECK(cudaGetDevice(&before_));
    changed_ = before_ != index;
    if (changed_) MEMSYS_CUDA_CHECK(cudaSetDevice(index));
  }
  ~DeviceGuard() {
    if (changed_ && cudaSetDevice(before_) != cudaSuccess) clear_cuda_error();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Frees or destroys on `index`; never throws. At process exit the runtime is gone (cudaErrorCudartUnloading), and
// with it whatever was to be destroyed.
template <typename Call>
void destroy_on(int index, Call call) noexcept {
  try {
    const DeviceGuard guard(index);
    if (call() != cudaSuccess) clear_cuda_error();
  } catch (const Error&) {
    clear_cuda_error();
  }
}

bool is_complete(cudaEvent_t event) {
  const cudaError_t code = cudaEventQuery(event);
  if (code == cudaSuccess) return true;
  // "Not ready" counts as an error that the runtime remembers.
  if (code != cudaErrorNotReady) throw_cuda_error("cudaEventQuery(event)", code);
  clear_cuda_error();
  return false;
}

size_t count_of(int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "a count of " + std::to_string(bytes) + " bytes: give a count >= 0");
  return static_cast<size_t>(bytes);
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    cudaDeviceProp properties{};
    MEMSYS_CUDA_CHECK(cudaGetDeviceProperties(&properties, index_));
    capabilities_.kind = DeviceKind::cuda;
    capabilities_.name = properties.name;
    capabilities_.host_addressable = false;
    capabilities_.needs_pinning = true;
    const DeviceGuard guard(index_);
    int least = 0;
    MEMSYS_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest_priority_));
  }

  const Capabilities& capabilities() const override { return capabilities_; }

  void* allocate(int64_t bytes, StreamView) override {
    const DeviceGuard guard(index_);
    void* pointer = nullptr;
    const cudaError_t code = cudaMalloc(&pointer, count_of(bytes == 0 ? 1 : bytes));
    if (code == cudaErrorMemoryAllocation) {
      clear_cuda_error();
      throw BudgetError("GPU " + std::to_string(index_) + " (" + capabilities_.name + ") has no " +
                        format_bytes(bytes) + " left in one piece: lower device_budget, or free memory on the GPU");
    }
    if (code != cudaSuccess) throw_cuda_error(("cudaMalloc(" + std::to_string(bytes) + ")").c_str(), code);
    return pointer;
  }

  // cudaFree waits for the whole GPU, which is stronger than the order of one stream.
  void free(void* pointer, int64_t, StreamView) noexcept override {
    destroy_on(index_, [&] { return cudaFree(pointer); });
  }

  void register_host(void* pointer, int64_t bytes) override {
    const DeviceGuard guard(index_);
    const cudaError_t code =
        cudaHostRegister(pointer, count_of(bytes), cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (code == cudaErrorMemoryAllocation) {
      clear_cuda_error();
      throw BudgetError("the driver refused to pin " + format_bytes(bytes) +
                        " of host memory: lower host_budget, or raise the limit on locked memory (ulimit -l)");
    }
    if (code != cudaSuccess) throw_cuda_error(("cudaHostRegister(" + std::to_string(bytes) + ")").c_str(), code);
  }

  void unregister_host(void* pointer) noexcept override {
    destroy_on(index_, [&] { return cudaHostUnregister(pointer); });
  }

  // Copies should start as soon as their events allow, before queued kernels: the highest priority.
  StreamView create_stream(const std::string&) override {
    const DeviceGuard guard(index_);
    cudaStream_t stream = nullptr;
    MEMSYS_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest_priority_));
    return {reinterpret_cast<uintptr_t>(stream)};
  }

  void destroy_stream(StreamView stream) noexcept override {
    destroy_on(index_, [&] { return cudaStreamDestroy(native(stream)); });
  }

  EventId create_event() override {
    const DeviceGuard guard(index_);
    cudaEvent_t event = nullptr;
    MEMSYS_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return {reinterpret_cast<uintptr_t>(event)};
  }

  void destroy_event(EventId event) noexcept override {
    destroy_on(index_, [&] { return cudaEventDestroy(native(event)); });
  }

  void record(EventId event, StreamView stream) override {
    const DeviceGuard guard(index_);
    MEMSYS_CUDA_CHECK(cudaEventRecord(native(event), native(stream)));
  }

  void wait(StreamView stream, EventId event) override {
    const DeviceGuard guard(index_);
    MEMSYS_CUDA_CHECK(cudaStreamWaitEvent(native(stream), native(event), 0));
  }

  bool query(EventId event) override {
    const DeviceGuard guard(index_);
    return is_complete(native(event));
  }

  void synchronize(EventId event) override {
    const DeviceGuard guard(index_);
    MEMSYS_CUDA_CHECK(cudaEventSynchronize(native(event)));
  }

  // A gate may not throw: a GPU that failed opens it, and the next checked call reports the failure, which CUDA
  // keeps for the rest of the process.
  Gate gate(EventId event) override {
    const auto ready = [index = index_, event] {
      try {
        const DeviceGuard guard(index);
        return is_complete(native(event));
      } catch (const DeviceError&) {
        return true;
      }
    };
    const auto block = [index = index_, event] {
      destroy_on(index, [&] { return cudaEventSynchronize(native(event)); });
    };
    return {ready, block};
  }

  void copy(void* target, const void* source, int64_t bytes, StreamView stream) override {
    const DeviceGuard guard(index_);
    MEMSYS_CUDA_CHECK(cudaMemcpyAsync(target, source, count_of(bytes), cudaMemcpyDefault, native(stream)));
  }

  void fill(void* target, unsigned char value, int64_t bytes, StreamView stream) override {
    const DeviceGuard guard(index_);
    MEMSYS_CUDA_CHECK(cudaMemsetAsync(target, value, count_of(bytes), native(stream)));
  }

  void note_use(const void*, int64_t, StreamView, Use) override {}
  void note_free(const void*, int64_t, StreamView) override {}
  void note_user(const void*, StreamView) override {}

 private:
  const int index_;
  int greatest_priority_ = 0;
  Capabilities capabilities_;
};

}  // namespace

std::shared_ptr<Device> make_cuda_device(int index) {
  const CudaStatus status = cuda_status();
  MEMSYS_EXPECT(status.device_count > 0, DeviceError, "no CUDA device: " + status.message);
  MEMSYS_EXPECT(index >= 0 && index < status.device_count, InputError,
                "there is no GPU " + std::to_string(index) + ": give 0 to " + std::to_string(status.device_count - 1));
  return std::make_shared<CudaDevice>(index);
}

}  // namespace memsys
