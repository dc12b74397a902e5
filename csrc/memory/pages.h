// Anonymous pages of host memory, as the pageable and the pinned resource both take them from the system.
#pragma once

#include <cstdint>

#include "memory/memory_resource.h"

namespace memsys {

// Private zero pages. Kept out of core dumps. From 2 MiB on, aligned to 2 MiB and advised to be huge pages: the first
// touch, which would otherwise fault every 4 KiB, is then about three times as fast.
// A forked child finds zeros here, and owns pages of its own once it touches them: a plain copy-on-write mapping
// would double in memory as the parent goes on writing (at once, if pinned), and one hidden from the child would
// crash it. So what forked workers shall read (a table of features) must live in other memory.
// Throws BudgetError, which names `tier`.
void* map_pages(int64_t bytes, Tier tier);
void unmap_pages(void* pointer, int64_t bytes) noexcept;

// Gives every page of [pointer, pointer + bytes) its memory now. Throws BudgetError where there is none left.
void touch_pages(void* pointer, int64_t bytes, Tier tier);

int64_t page_bytes();
inline constexpr int64_t kHugePageBytes = int64_t{2} << 20;

}  // namespace memsys
