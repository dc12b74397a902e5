// Reads many short runs of a weight file at once, through page-aligned staging, and hands each to the caller as it
// arrives. All stores of one model share one reader, and with it the staging and the budget of bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/runtime.h"
#include "engine/weight_file.h"
#include "memory/buffer.h"
#include "memory/byte_budget.h"
#include "plan/row_runs.h"

namespace memsys {

struct RowReaderOptions {
  std::shared_ptr<Runtime> runtime;
  int64_t max_run_bytes = 128 * 1024;  // what one read may bring, its ragged pages not counted
  int64_t slot_count = 32;             // reads in flight
  int64_t device_budget_bytes = -1;    // for the staging and for every store; -1: counted only
};

class RowReader {
 public:
  // Throws BudgetError where the staging alone is too much.
  explicit RowReader(const RowReaderOptions& options);

  struct Times {
    int64_t wait_us = 0, land_us = 0;
  };
  // Calls `land` with each run's number and its bytes, on the calling thread and one at a time, as they arrive. Blocks.
  // Throws the first error, of a read or of `land`, once no read is under way any more; other runs may have landed.
  Times read(WeightFile& file, std::span<const ReadRun> runs, const std::function<void(size_t, const char*)>& land);

  int64_t max_run_bytes() const { return max_run_bytes_; }
  const std::shared_ptr<MemoryResource>& memory() const { return memory_; }  // counted against the budget
  const std::shared_ptr<ByteBudget>& budget() const { return budget_; }

 private:
  struct Flight;
  void start(WeightFile& file, const ReadRun& run, const std::shared_ptr<Flight>& flight, size_t slot);
  char* slot_at(size_t slot) const;

  const std::shared_ptr<Runtime> runtime_;
  const int64_t max_run_bytes_, slot_bytes_, slot_count_;
  const std::shared_ptr<ByteBudget> budget_;
  const std::shared_ptr<MemoryResource> memory_;
  Buffer staging_;
  std::mutex mutex_;  // one call of read() at a time: the staging is one
};

}  // namespace memsys
