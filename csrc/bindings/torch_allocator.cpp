// The functions that torch calls through CUDAPluggableAllocator, by their names in this library: plain C, with the
// signatures of torch/csrc/cuda/CUDAPluggableAllocator.h, and without torch. They are the library's only exports
// besides its entry point. An exception passes through them on purpose: torch turns it into Python's, with its message,
// while a null pointer would become a tensor without memory.
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "engine/installed_allocator.h"

#define MEMSYS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

memsys::StreamView view(void* stream) { return {reinterpret_cast<uintptr_t>(stream)}; }

}  // namespace

MEMSYS_EXPORT void* memsys_allocate(ssize_t bytes, int device, void* stream) {
  return memsys::installed_slab(device).allocate(bytes, view(stream));
}

MEMSYS_EXPORT void memsys_free(void* pointer, ssize_t, int device, void*) {
  memsys::installed_slab(device).free(pointer);
}

MEMSYS_EXPORT void memsys_record_stream(void* pointer, void* stream) {
  if (memsys::PlannedSlab* slab = memsys::installed_slab_of(pointer)) slab->record_stream(pointer, view(stream));
}

// What torch.cuda.empty_cache() calls.
MEMSYS_EXPORT void memsys_reset() { memsys::reset_installed_slabs(); }

// Where the memory that was taken from the driver begins, for sharing it with another process.
MEMSYS_EXPORT void* memsys_base_allocation(void* pointer, size_t* bytes) {
  memsys::PlannedSlab* slab = memsys::installed_slab_of(pointer);
  MEMSYS_EXPECT(slab != nullptr, memsys::InputError, "the planned allocator was asked for memory that is not its own");
  const auto [base, size_bytes] = slab->piece_of(pointer);
  if (bytes != nullptr) *bytes = static_cast<size_t>(size_bytes);
  return base;
}

// Called when a CUDA graph is captured or a MemPool is entered. Left unset, torch would go on as if there were a pool,
// and a graph's memory would be handed out again.
MEMSYS_EXPORT void memsys_refuse_pool(int, uint64_t, uint64_t, const void*) {
  throw memsys::DeviceError(
      "the planned allocator keeps no pools apart: CUDA graphs and torch.cuda.MemPool don't work with it; run without "
      "memsys.install_allocator");
}

MEMSYS_EXPORT void memsys_refuse_fraction(double, int) {
  throw memsys::DeviceError(
      "the planned allocator has no memory fraction: its slab is what the plan says; plan for less, or run without "
      "memsys.install_allocator");
}
