// A pool of host memory that hands out blocks of exact size (rounded to `alignment`), splits and merges them, and
// takes whole slabs from its upstream. Peers round pinned memory to powers of two and lose up to half of it; this
// arena's waste is the rounding to `alignment` and the free space inside slabs, both counted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "memory/memory_resource.h"

namespace memsys {

struct ArenaOptions {
  int64_t budget_bytes = -1;               // slabs never exceed it in sum; -1: no limit
  int64_t slab_bytes = int64_t{32} << 20;  // a larger block gets a slab of its own
  int64_t alignment = 4096;
};

struct ArenaStats {
  int64_t reserved_bytes = 0, peak_reserved_bytes = 0;  // slabs
  int64_t used_bytes = 0, peak_used_bytes = 0;          // blocks as asked for
  int64_t block_count = 0, slab_count = 0;
  int64_t taken_count = 0;  // slabs taken from the upstream so far: it stands still where a step repeats itself
};

class Arena : public MemoryResource {
 public:
  // Flushes free slabs and tries once more before it throws BudgetError.
  void* allocate(int64_t bytes) override = 0;
  // nullptr instead of a throw, and no flush: for callers that would rather wait or fall back.
  virtual void* try_allocate(int64_t bytes) = 0;
  // Gives wholly free slabs back to the upstream, until at most `keep_bytes` are reserved or none is free.
  virtual int64_t trim(int64_t keep_bytes = 0) = 0;
  virtual void set_budget(int64_t budget_bytes) = 0;
  virtual ArenaStats stats() const = 0;
  virtual void check_invariants() const = 0;
};

std::shared_ptr<Arena> make_arena(std::shared_ptr<MemoryResource> upstream, ArenaOptions options = {});

}  // namespace memsys
