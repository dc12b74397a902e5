// Copies rows of a table on a CPU, by index: the next rows are prefetched while one is copied with the widest
// registers there are, which torch.index_select (a memcpy a row, no prefetch) leaves undone. One backend a file, so
// that the tests can hold each against the portable one; a backend for another architecture is listed as unsupported.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/gather_body.h"

namespace memsys {

// How rows are written. `streaming` goes past the caches, where rows of the output are whole lines and the backend can:
// it saves reading the target's lines before they are written, a third of all traffic.
enum class StorePath { cached, streaming };

// Borrows everything. gather() takes indices from -row_count to row_count - 1 alone: the caller has checked them.
struct RowCopy {
  const char* table = nullptr;
  int64_t row_bytes = 0;
  int64_t row_stride_bytes = 0;
  int64_t row_count = 0;
  const void* index = nullptr;  // contiguous
  IndexType index_type = IndexType::int64;
  char* packed = nullptr;  // row i of it belongs to index i
  int64_t packed_stride_bytes = 0;
  StorePath store_path = StorePath::cached;
};

struct RowCopyBackend {
  const char* name;
  bool (*is_supported)();
  // Copies table rows to packed rows, for positions [begin, end) of the index.
  void (*gather)(const RowCopy& copy, int64_t begin, int64_t end);
  // Position of the first index outside [-row_count, row_count) within positions [begin, end), or -1.
  int64_t (*find_bad_index)(const RowCopy& copy, int64_t begin, int64_t end);
};

const RowCopyBackend& avx512_row_copy();
const RowCopyBackend& avx2_row_copy();
const RowCopyBackend& neon_row_copy();
const RowCopyBackend& portable_row_copy();

// All of them, fastest first; the last, portable, is always supported.
std::span<const RowCopyBackend> row_copy_backends();
// The fastest that this CPU runs.
const RowCopyBackend& row_copy_backend();

}  // namespace memsys
