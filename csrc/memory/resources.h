// The resources at the bottom, and the adaptors.
#pragma once

#include <cstdint>
#include <memory>

#include "base/fault_counter.h"
#include "device/device.h"
#include "memory/memory_resource.h"
#include "memory/pages.h"

namespace memsys {

// Anonymous mappings, page-aligned, kept out of core dumps; what a forked child finds in them, pages.h says.
std::shared_ptr<MemoryResource> make_mmap_resource(ForkView fork = ForkView::zeros);
// The same, with every page touched at allocation, so that no page fault is left for the lanes, and registered with
// the device (pinned). On a device that needs no pinning it is plain touched memory of tier pageable. The pages are
// touched in parallel on `touch_thread_count` queues of the executor, or on the calling thread where there is none.
// Allocating waits for those queues: with an executor, never allocate from a task.
std::shared_ptr<MemoryResource> make_pinned_resource(std::shared_ptr<Device> device,
                                                     std::shared_ptr<Executor> executor = nullptr,
                                                     int64_t touch_thread_count = 2);
// Device memory on stream 0.
std::shared_ptr<MemoryResource> make_device_resource(std::shared_ptr<Device> device);

// Fails the k-th allocation (counted from 0), once or from then on, with BudgetError. at = -1: never.
class FaultyMemoryResource : public MemoryResource {
 public:
  virtual void arm(int64_t at, bool persistent) = 0;
  virtual int64_t attempt_count() const = 0;
};
// With a counter of the caller's, several resources count together.
std::shared_ptr<FaultyMemoryResource> make_faulty_resource(std::shared_ptr<MemoryResource> upstream,
                                                           std::shared_ptr<FaultCounter> faults = nullptr);

}  // namespace memsys
