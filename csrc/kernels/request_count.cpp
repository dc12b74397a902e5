// Replays the warps of a gather, instruction by instruction, and merges what each instruction reads.
#include "kernels/request_count.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/gather_lanes.h"
#include "kernels/pattern_body.h"

namespace memsys {
namespace {

constexpr uint64_t kSectorBytes = 32;

uint64_t first_line(const RowSpan& row) { return row.source / kLineBytes; }
uint64_t end_line(const RowSpan& row) {
  return (row.source + static_cast<uint64_t>(row.bytes) + kLineBytes - 1) / kLineBytes;
}

// What the lanes of one instruction of a warp read: the lines, each with a bit for each of its sectors.
class Instruction {
 public:
  void add(const LaneRead& read) {
    if (read.bytes == 0) return;
    const uint64_t end = read.address + static_cast<uint64_t>(read.bytes);
    for (uint64_t sector = read.address / kSectorBytes; sector * kSectorBytes < end; ++sector) add_sector(sector);
  }

  int64_t request_count() const {
    int64_t count = 0;
    // A run begins where a sector is read and the one before it in its line is not.
    for (size_t line = 0; line < line_count_; ++line)
      count += std::popcount(lines_[line].sectors & ~(lines_[line].sectors << 1));
    return count;
  }

 private:
  struct Line {
    uint64_t number = 0;
    unsigned sectors = 0;
  };

  void add_sector(uint64_t sector) {
    const uint64_t number = sector * kSectorBytes / kLineBytes;
    const unsigned bit = 1u << (sector % (kLineBytes / kSectorBytes));
    // From the newest, since neighbouring lanes mostly read the same line.
    for (size_t line = line_count_; line-- > 0;) {
      if (lines_[line].number != number) continue;
      lines_[line].sectors |= bit;
      return;
    }
    lines_[line_count_++] = {number, bit};
  }

  std::array<Line, 2 * kWarpLanes> lines_;  // a lane's read lies in two lines at most
  size_t line_count_ = 0;
};

// The aligned kernel reads a line of a row in one turn, whatever rows are in flight beside it, and nothing is merged
// across instructions: how many rows and turns are in flight changes their order alone, so it is not replayed.
int64_t count_aligned(int64_t row_bytes, std::span<const uint64_t> addresses) {
  const GatherShape shape = gather_shape(row_bytes);
  const auto round_rows = static_cast<size_t>(shape.round_rows());
  int64_t requests = 0;
  for (size_t round = 0; round < addresses.size(); round += round_rows) {
    for (int row = 0; row < shape.rows; ++row) {
      std::array<RowSpan, kWarpLanes> rows;
      int64_t turns = 0;
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const size_t at = round + static_cast<size_t>(row_of_lane(shape, 0, row, lane));
        if (at < addresses.size()) rows[static_cast<size_t>(lane)] = {addresses[at], 0, row_bytes};
        turns = std::max(turns, turn_count(rows[static_cast<size_t>(lane)], shape.lanes));
      }
      for (int64_t turn = 0; turn < turns; ++turn) {
        Instruction instruction;
        for (int lane = 0; lane < kWarpLanes; ++lane)
          instruction.add(aligned_read(rows[static_cast<size_t>(lane)], shape.lanes, turn, lane));
        requests += instruction.request_count();
      }
    }
  }
  return requests;
}

int64_t count_flat(int64_t row_bytes, std::span<const uint64_t> addresses) {
  const int word_bytes = row_bytes % 4 == 0 ? 4 : row_bytes % 2 == 0 ? 2 : 1;
  const int64_t row_words = row_bytes / word_bytes;
  const int64_t word_count = row_words * static_cast<int64_t>(addresses.size());
  int64_t requests = 0;
  for (int64_t warp_word = 0; warp_word < word_count; warp_word += kWarpLanes) {
    Instruction instruction;
    for (int64_t word = warp_word; word < std::min(warp_word + kWarpLanes, word_count); ++word) {
      const RowSpan row{addresses[static_cast<size_t>(word / row_words)], 0, row_bytes};
      instruction.add(flat_read(row, word_bytes, word % row_words));
    }
    requests += instruction.request_count();
  }
  return requests;
}

}  // namespace

RequestCount count_requests(ReadPattern pattern, int64_t row_bytes, std::span<const uint64_t> row_addresses) {
  MEMSYS_EXPECT(row_bytes >= 0, InputError,
                "requests were asked for of rows of " + std::to_string(row_bytes) + " bytes");
  RequestCount count;
  count.row_count = static_cast<int64_t>(row_addresses.size());
  if (row_bytes == 0) return count;
  for (const uint64_t address : row_addresses) {
    const RowSpan row{address, 0, row_bytes};
    count.least_count += static_cast<int64_t>(end_line(row) - first_line(row));
  }
  count.request_count =
      pattern == ReadPattern::aligned ? count_aligned(row_bytes, row_addresses) : count_flat(row_bytes, row_addresses);
  return count;
}

RequestCount count_random_requests(ReadPattern pattern, const RandomRows& rows) {
  MEMSYS_EXPECT(rows.row_count > 0, InputError, "rows were to be drawn from a table that has none");
  std::vector<uint64_t> addresses;
  addresses.reserve(static_cast<size_t>(std::max<int64_t>(rows.sample_count, 0)));
  for (int64_t sample = 0; sample < rows.sample_count; ++sample) {
    const uint64_t row = pattern_word(rows.seed, sample) % static_cast<uint64_t>(rows.row_count);
    addresses.push_back(rows.base + row * static_cast<uint64_t>(rows.row_stride_bytes));
  }
  return count_requests(pattern, rows.row_bytes, addresses);
}

}  // namespace memsys
