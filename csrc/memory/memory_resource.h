// Where bytes come from. A memory resource allocates bytes of one tier; adaptors wrap an upstream resource and add
// one thing each (a limit, a count, a fault).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace memsys {

enum class Tier { device, pinned, pageable, file };
const char* tier_name(Tier tier);

class MemoryResource {
 public:
  virtual ~MemoryResource() = default;
  // Never null: throws BudgetError naming the tier, the bytes wanted and found, and a remedy. Page-aligned or
  // better from pageable and pinned resources.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void deallocate(void* pointer, int64_t bytes) noexcept = 0;
  virtual Tier tier() const = 0;
};

struct MemoryStats {
  int64_t current_bytes = 0, peak_bytes = 0, allocation_count = 0;
};

}  // namespace memsys
