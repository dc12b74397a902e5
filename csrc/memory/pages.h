// Anonymous pages of host memory, as the pageable and the pinned resource both take them from the system.
#pragma once

#include <cstdint>

#include "memory/memory_resource.h"

namespace memsys {

// What a forked child finds in the pages. zeros: it owns pages of its own once it touches them; a copy-on-write mapping
// would double in memory as the parent goes on writing (at once, if pinned), and one hidden from the child would crash
// it. copy: copy-on-write, for what users hold (a table of features, its rows) and a forked worker may read.
enum class ForkView { zeros, copy };

// Private zero pages. Kept out of core dumps. From 2 MiB on, aligned to 2 MiB and advised to be huge pages: the first
// touch, which would otherwise fault every 4 KiB, is then about three times as fast.
// Throws BudgetError, which names `tier`.
void* map_pages(int64_t bytes, Tier tier, ForkView fork = ForkView::zeros);
void unmap_pages(void* pointer, int64_t bytes) noexcept;

// Gives every page of [pointer, pointer + bytes) its memory now. Throws BudgetError where there is none left.
void touch_pages(void* pointer, int64_t bytes, Tier tier);

int64_t page_bytes();
inline constexpr int64_t kHugePageBytes = int64_t{2} << 20;

}  // namespace memsys
