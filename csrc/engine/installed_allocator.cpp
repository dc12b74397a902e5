// See installed_allocator.h.
#include "engine/installed_allocator.h"

#include <mutex>
#include <string>
#include <utility>

#include "base/error.h"

namespace memsys {
namespace {

struct Installed {
  std::mutex mutex;
  std::shared_ptr<Runtime> runtime;  // null: nothing is installed
  std::map<int, std::unique_ptr<PlannedSlab>> slabs;
};

Installed& installed() {
  static auto* const state = new Installed;  // never destroyed
  return *state;
}

}  // namespace

void install_allocator(const std::shared_ptr<Runtime>& runtime, int device_index, SlabPlan plan) {
  const std::lock_guard lock(installed().mutex);
  MEMSYS_EXPECT(installed().runtime == nullptr, InputError,
                "install_allocator: this process has a planned allocator already; install one a process, at its start");
  installed().slabs[device_index] = std::make_unique<PlannedSlab>(runtime->device, std::move(plan));
  installed().runtime = runtime;
}

bool is_allocator_installed() {
  const std::lock_guard lock(installed().mutex);
  return installed().runtime != nullptr;
}

PlannedSlab& installed_slab(int device_index) {
  const std::lock_guard lock(installed().mutex);
  MEMSYS_EXPECT(installed().runtime != nullptr, InputError,
                "no planned allocator is installed: call memsys.install_allocator(plan) before anything uses the GPU");
  std::unique_ptr<PlannedSlab>& slab = installed().slabs[device_index];
  if (slab == nullptr) {
    const bool is_cuda = installed().runtime->device->capabilities().kind == DeviceKind::cuda;
    MEMSYS_EXPECT(is_cuda, InputError,
                  "the planned allocator has no device " + std::to_string(device_index) +
                      ", only the one it was "
                      "installed for");
    slab = std::make_unique<PlannedSlab>(make_cuda_device(device_index), SlabPlan{});
  }
  return *slab;
}

PlannedSlab* installed_slab_of(const void* pointer) {
  const std::lock_guard lock(installed().mutex);
  for (const auto& [index, slab] : installed().slabs)
    if (slab != nullptr && slab->piece_of(pointer).first != nullptr) return slab.get();
  return nullptr;
}

void reset_installed_slabs() {
  const std::lock_guard lock(installed().mutex);
  for (const auto& [index, slab] : installed().slabs)
    if (slab != nullptr) slab->reset();
}

std::map<int, PlannedSlabStats> installed_stats() {
  const std::lock_guard lock(installed().mutex);
  std::map<int, PlannedSlabStats> result;
  for (const auto& [index, slab] : installed().slabs)
    if (slab != nullptr) result.emplace(index, slab->stats());
  return result;
}

}  // namespace memsys
