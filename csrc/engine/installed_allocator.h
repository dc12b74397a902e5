// The planned slab as the allocator of a whole process: what the functions that torch calls (bindings/
// torch_allocator.cpp) work on. It is installed once and stays until the process ends, as torch's use of it does; it is
// never destroyed, because a driver may be gone by the time static objects are.
#pragma once

#include <map>
#include <memory>

#include "engine/runtime.h"
#include "memory/planned_slab.h"

namespace memsys {

// `plan` is for the device of `runtime`, which torch calls `device_index`; other CUDA devices are served without a
// plan. Takes the slab at once. Throws InputError if one is installed already.
void install_allocator(const std::shared_ptr<Runtime>& runtime, int device_index, SlabPlan plan);
bool is_allocator_installed();

// Throws InputError if no allocator is installed, or the device is none of its.
PlannedSlab& installed_slab(int device_index);
// Whose memory the address is; null: nobody's.
PlannedSlab* installed_slab_of(const void* pointer);
void reset_installed_slabs();
// By torch's index of the device.
std::map<int, PlannedSlabStats> installed_stats();

}  // namespace memsys
