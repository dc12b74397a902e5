// Ranges of one spill file: an offset allocator over a file that is made at the first use and grows in slabs.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "io/file.h"
#include "memory/byte_budget.h"
#include "plan/offset_allocator.h"

namespace memsys {

class SpillSpace {
 public:
  // Every range starts and ends on `kRangeAlignment`, which every direct alignment seen so far divides.
  static constexpr int64_t kRangeAlignment = 4096;
  // Few enough growths, little space wasted; the file system lays a slab out in one piece.
  static constexpr int64_t kSlabBytes = int64_t{64} << 20;

  SpillSpace(std::string folder, std::shared_ptr<ByteBudget> disk_budget, DirectMode direct);
  ~SpillSpace();

  // Offset of a range. Throws BudgetError (disk_budget) or SpillError (disk full).
  int64_t allocate(int64_t bytes);
  void free(int64_t offset) noexcept;

  // Makes the file if it is not there yet.
  std::shared_ptr<File> file();
  int64_t used_bytes() const;
  int64_t reserved_bytes() const;

 private:
  int64_t try_allocate(int64_t bytes);
  void grow(int64_t bytes);

  const std::string folder_;
  const std::shared_ptr<ByteBudget> disk_budget_;
  const DirectMode direct_;
  std::mutex growth_mutex_;  // one growth at a time; held across fallocate, so never together with ranges_mutex_
  mutable std::mutex ranges_mutex_;
  std::shared_ptr<File> file_;
  OffsetAllocator ranges_{0, kRangeAlignment};
};

}  // namespace memsys
