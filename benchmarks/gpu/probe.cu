// A small library with a CUDA runtime of its own, linked statically as memsys links it. Through it the checks ask
// whether such a runtime accepts the streams, events and pointers that torch made with another, and measure how fast
// the multiprocessors themselves read and write host memory. nvcc includes the runtime's header.
#include <cstdint>

static __global__ void copy_kernel(uint4* target, const uint4* source, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; index < count; index += stride)
    target[index] = source[index];
}

extern "C" {

const char* probe_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int probe_runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

// A stream of torch's: ask for its flags, wait for it, and give it work.
int probe_stream(uintptr_t stream, uintptr_t target, int64_t bytes) {
  const auto handle = reinterpret_cast<cudaStream_t>(stream);
  unsigned flags = 0;
  cudaError_t error = cudaStreamGetFlags(handle, &flags);
  if (error == cudaSuccess) error = cudaMemsetAsync(reinterpret_cast<void*>(target), 7, bytes, handle);
  if (error == cudaSuccess) error = cudaStreamSynchronize(handle);
  return error;
}

// An event of torch's, already recorded: a stream of ours waits for it.
int probe_event(uintptr_t event) {
  const auto handle = reinterpret_cast<cudaEvent_t>(event);
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, handle, 0);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error == cudaSuccess) error = cudaEventQuery(handle);
  if (stream != nullptr) cudaStreamDestroy(stream);
  return error;
}

// What our runtime takes a pointer for: a cudaMemoryType, or minus the error.
int probe_pointer(uintptr_t pointer) {
  cudaPointerAttributes attributes{};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, reinterpret_cast<void*>(pointer));
  return error == cudaSuccess ? static_cast<int>(attributes.type) : -static_cast<int>(error);
}

int probe_register(uintptr_t pointer, int64_t bytes) {
  return cudaHostRegister(reinterpret_cast<void*>(pointer), static_cast<size_t>(bytes), cudaHostRegisterDefault);
}

int probe_unregister(uintptr_t pointer) { return cudaHostUnregister(reinterpret_cast<void*>(pointer)); }

// Copies by multiprocessors instead of the copy engine; `bytes` is a multiple of 16.
int probe_copy_sm(uintptr_t target, uintptr_t source, int64_t bytes, uintptr_t stream) {
  copy_kernel<<<512, 256, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<uint4*>(target), reinterpret_cast<const uint4*>(source), bytes / 16);
  return cudaGetLastError();
}
}
