// How many requests a gather sends to host memory, counted without a device: whole warps are replayed through the
// lane functions of the kernels, and what the lanes of one instruction read is merged by a model of the hardware.
// The model: one request for each contiguous run of 32-byte sectors within a 128-byte line, per instruction of a
// warp; nothing is merged across instructions. It is a model: a device may merge more.
#pragma once

#include <cstdint>
#include <span>

namespace memsys {

// aligned: cuda_kernels::gather_rows_aligned. flat: lanes over the flat output, as torch's index_select has them, in
// words of 4 bytes, or of 2 or 1 where the row's width asks for it.
enum class ReadPattern { aligned, flat };

struct RequestCount {
  int64_t row_count = 0;
  int64_t request_count = 0;
  // The lines that cover each row, added up: less is not possible unless rows share lines.
  int64_t least_count = 0;
  double per_row() const {
    return row_count == 0 ? 0 : static_cast<double>(request_count) / static_cast<double>(row_count);
  }
};

// For rows at these addresses, in the order in which they are gathered.
RequestCount count_requests(ReadPattern pattern, int64_t row_bytes, std::span<const uint64_t> row_addresses);

// A table as random gathers see it: `sample_count` of its rows, drawn with a seed.
struct RandomRows {
  int64_t row_bytes = 0;
  int64_t row_stride_bytes = 0;
  uint64_t base = 0;  // the table's address, of which its position within a 128-byte line counts
  int64_t row_count = 0;
  int64_t sample_count = 0;
  uint64_t seed = 0;
};
RequestCount count_random_requests(ReadPattern pattern, const RandomRows& rows);

}  // namespace memsys
