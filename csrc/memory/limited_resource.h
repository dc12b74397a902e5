// Counts an upstream's bytes against a budget: reserve, then allocate, and undo the reservation if that fails.
#pragma once

#include <memory>

#include "memory/byte_budget.h"
#include "memory/memory_resource.h"

namespace memsys {

std::shared_ptr<MemoryResource> make_limited_resource(std::shared_ptr<MemoryResource> upstream,
                                                      std::shared_ptr<ByteBudget> budget);

}  // namespace memsys
