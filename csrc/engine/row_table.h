// A table of rows in host memory, and the gather of its rows on the CPU, which is the whole of it where there is no
// GPU. The table's memory is its own: page-aligned (so at a 128-byte boundary), exact in size, on huge pages; or a
// caller's, adopted where it lies.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/row_team.h"
#include "engine/runtime.h"
#include "kernels/row_copy.h"
#include "memory/arena.h"
#include "memory/buffer.h"

namespace memsys {

struct RowTableOptions {
  std::shared_ptr<Runtime> runtime;
  int64_t row_count = 0;
  int64_t row_bytes = 0;
  int64_t row_stride_bytes = 0;  // of adopted memory; our own is packed
  void* adopted = nullptr;       // outlives the table
  int64_t helper_count = 0;      // threads beside the caller's
  ForeignPool pool = nullptr;    // whose threads work instead of helpers
};

// Whose it is to register the table's pages with a device.
enum class Registration { ours, owners };

// Borrows index and rows until the call returns.
struct GatherRequest {
  const void* index = nullptr;  // contiguous
  IndexType index_type = IndexType::int64;
  int64_t index_count = 0;
  void* rows = nullptr;  // packed
  int64_t thread_count = 1;
  std::string backend;  // of row_copy_backends(); empty: the fastest
};

// A gather by a device's kernel, which reads the table where it lies. All addresses are the device's; index, rows and
// bad_position live until the stream has come that far.
struct DeviceGatherRequest {
  const void* index = nullptr;
  IndexType index_type = IndexType::int64;
  int64_t index_count = 0;
  void* rows = nullptr;                        // packed
  unsigned long long* bad_position = nullptr;  // set to kNoPosition before; see gather_body.h
  int64_t max_blocks = 0;                      // 0: as many as there is work for
  StreamView stream;
};

class RowTable {
 public:
  explicit RowTable(RowTableOptions options);
  ~RowTable();

  // Copies row index[i] to rows + i * row_bytes; negative indices count from the end. Returns -1, or the position of
  // the first index out of range, and has then written nothing. A caller in a forked child passes thread_count 1.
  int64_t gather(const GatherRequest& request);
  // Lets `device` read the table from its kernels; once, however often it is called. Pages of adopted memory may be
  // registered by their owner. Throws BudgetError or DeviceError.
  void open_to(const std::shared_ptr<Device>& device, Registration registration);
  // Enqueues the gather; rows whose index is out of range are not written.
  void gather_on_device(const DeviceGatherRequest& request) const;
  // Memory for gathered rows, from a pool whose pages were touched before. Throws BudgetError.
  std::shared_ptr<Buffer> allocate_rows(int64_t bytes);
  // Gives what the pool holds and nobody uses back to the system; returns the bytes.
  int64_t trim() { return pool_->trim(); }
  int64_t pool_bytes() const { return pool_->stats().reserved_bytes; }

  void* data() const { return data_; }
  int64_t row_count() const { return options_.row_count; }
  int64_t row_bytes() const { return options_.row_bytes; }
  int64_t size_bytes() const;

 private:
  int64_t find_bad(const RowCopy& copy, const RowCopyBackend& backend, int64_t count, int64_t thread_count);
  void copy_rows(const RowCopy& copy, const RowCopyBackend& backend, int64_t count, int64_t thread_count);

  void close() noexcept;

  RowTableOptions options_;
  Buffer memory_;
  void* data_ = nullptr;
  RowTeam team_;
  std::shared_ptr<Arena> pool_;
  std::mutex open_mutex_;
  std::shared_ptr<Device> open_to_;
  std::vector<void*> registered_;
  std::atomic<int64_t> largest_rows_bytes_{ArenaOptions{}.slab_bytes / 2};
};

}  // namespace memsys
