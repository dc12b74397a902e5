// Ordinary memory handed out as device memory, by the devices that have no other.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {

// A page: what O_DIRECT and io_uring want of the blocks they read into.
inline constexpr int64_t kHostBlockAlignment = 4096;

inline void* allocate_host_block(int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "cannot allocate " + std::to_string(bytes) + " bytes: give a count >= 0");
  void* pointer = nullptr;
  const auto rounded = static_cast<size_t>(align_up(bytes == 0 ? 1 : bytes, kHostBlockAlignment));
  MEMSYS_EXPECT(posix_memalign(&pointer, size_t{kHostBlockAlignment}, rounded) == 0, BudgetError,
                "the host has no " + format_bytes(bytes) +
                    " left for a block: lower the budget, or raise the limit on this process (cgroup, ulimit -v)");
  return pointer;
}

inline void free_host_block(void* pointer) noexcept { std::free(pointer); }

}  // namespace memsys
