// Ordinary memory handed out as device memory, by the devices that have no other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {

// A page: what O_DIRECT and io_uring want of the blocks they read into.
inline constexpr int64_t kHostBlockAlignment = 4096;
// What a process can address; beyond it there is no use in asking the system.
inline constexpr int64_t kHostAddressableBytes = int64_t{1} << 47;

inline void* allocate_host_block(int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "cannot allocate " + std::to_string(bytes) + " bytes: give a count >= 0");
  void* pointer = nullptr;
  const int64_t rounded = align_up(bytes < 1 ? 1 : std::min(bytes, kHostAddressableBytes), kHostBlockAlignment);
  const bool granted = rounded < kHostAddressableBytes &&
                       posix_memalign(&pointer, size_t{kHostBlockAlignment}, static_cast<size_t>(rounded)) == 0;
  MEMSYS_EXPECT(granted, BudgetError,
                "the host has no " + format_bytes(bytes) +
                    " left for a block: lower the budget, or raise the limit on this process (cgroup, ulimit -v)");
  return pointer;
}

inline void free_host_block(void* pointer) noexcept { std::free(pointer); }

}  // namespace memsys
