// The rows of one layer that are resident: the paper's DRAM structure with its bytes. A matrix of few rows, made once;
// a step reads what is missing of the rows wanted now from the file, moves what must move, and touches nothing else.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/row_reader.h"
#include "plan/row_window.h"

namespace memsys {

struct RowStoreOptions {
  std::shared_ptr<RowReader> reader;
  std::shared_ptr<WeightFile> file;
  int64_t offset_bytes = 0;  // of row 0 in the file
  int64_t row_count = 0, stride_bytes = 0;
  int64_t unit_bytes = 0;        // rows are read in whole units, which checksums cover; a divisor of stride_bytes
  std::vector<ByteRange> parts;  // of a row: what is kept of it, ascending and disjoint
  const void* bias = nullptr;    // row_count times bias_bytes, kept beside the rows; outlives the store
  int64_t bias_bytes = 0;
  int64_t capacity_rows = 0;
  std::unique_ptr<RowPolicy> policy;
  double amplification = 1.25;  // most bytes read for one byte of the units wanted
};

struct RowStoreStats {
  RowWindowStats window;
  int64_t wanted_bytes = 0;  // of rows that came, as they lie in the matrix
  int64_t read_bytes = 0;    // what the device moved for them, whole pages
  int64_t read_count = 0;
  int64_t io_us = 0, management_us = 0;  // waiting for reads; planning, moving and copying rows
  int64_t failure_count = 0;
};

class RowStore {
 public:
  // Throws InputError for numbers that do not fit together, BudgetError where the matrix does not.
  explicit RowStore(RowStoreOptions options);

  // Makes `wanted` (ascending strictly) resident and writes the row of each to `rows`. Throws InputError, and
  // BudgetError where more rows are wanted than fit: then nothing has changed. Throws what a read failed with: then
  // the store is empty, and the next step reads anew. Blocks; one caller at a time.
  void step(std::span<const int64_t> wanted, int64_t* rows);
  void clear();

  // Valid until the next step; rows [0, resident_count()) are in use.
  char* matrix() const { return static_cast<char*>(matrix_.data()); }
  char* bias() const { return static_cast<char*>(bias_.data()); }  // null without a bias
  std::span<const int64_t> neurons() const { return window_.neurons(); }
  int64_t resident_count() const { return window_.resident_count(); }
  int64_t capacity_rows() const { return window_.capacity_rows(); }
  int64_t row_bytes() const { return row_bytes_; }  // of the matrix
  int64_t bias_bytes() const { return options_.bias_bytes; }
  RowStoreStats stats() const;
  void check_invariants() const;

 private:
  // Bytes of a range that was read, and where they go within a row of the matrix.
  struct Copy {
    size_t range;
    int64_t source_bytes, target_bytes, size_bytes;
  };
  void plan_copies();
  void move_rows(const RowChange& change);
  void read_rows(const RowChange& change);
  void land_rows(const RowChange& change, const ReadRun& run, std::span<const ByteRange> ranges, const char* data);
  void copy_bias(const RowChange& change);
  int64_t device_bytes(const ReadRun& run) const;

  RowStoreOptions options_;        // its policy went to the window
  std::vector<ByteRange> ranges_;  // of a row, in whole units
  std::vector<Copy> copies_;
  int64_t row_bytes_ = 0;
  Buffer matrix_, bias_;
  mutable std::mutex mutex_;
  RowWindow window_;
  RowStoreStats stats_;
};

}  // namespace memsys
