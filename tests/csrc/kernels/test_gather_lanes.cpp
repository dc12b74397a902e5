// The gather on the host: the aligned kernel's arithmetic, replayed lane by lane, and the plain body give what memcpy
// gives, for every width and alignment, and touch nothing else. Both buffers end where the rules for reading and
// writing end, so that under the address sanitizer a byte too far is an error.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "csrc/check.h"
#include "kernels/gather_lanes.h"
#include "kernels/gather_launch.h"

using namespace memsys;

namespace {

constexpr uint8_t kGuard = 0xa5;

struct FreeLine {
  void operator()(uint8_t* bytes) const { operator delete (bytes, std::align_val_t{kLineBytes}); }
};
using LineBlock = std::unique_ptr<uint8_t[], FreeLine>;

// Memory that begins at a line.
LineBlock allocate(size_t bytes) {
  return LineBlock(static_cast<uint8_t*>(operator new (bytes + 1, std::align_val_t{kLineBytes})));
}

struct Case {
  size_t row_bytes = 0;
  size_t row_count = 0;
  std::vector<int64_t> index = {};
  IndexType index_type = IndexType::int64;
  std::vector<int64_t> target_position = {};
  size_t source_offset = 0;  // from a line
  size_t target_offset = 0;
  size_t source_gap = 0;  // between rows
  size_t target_gap = 0;
  int64_t max_blocks = 0;

  size_t source_stride() const { return row_bytes + source_gap; }
  size_t target_stride() const { return row_bytes + target_gap; }
  // Whole chunks, since a row's last chunk is read whole.
  size_t table_end() const { return (source_offset + row_count * source_stride() + 15) / 16 * 16; }
  size_t target_end() const { return target_offset + (index.size() + 1) * target_stride(); }
};

std::string describe(const Case& it) {
  std::ostringstream text;
  text << it.index.size() << " of " << it.row_count << " rows of " << it.row_bytes << " bytes, offsets "
       << it.source_offset << " and " << it.target_offset << ", gaps " << it.source_gap << " and " << it.target_gap;
  return text.str();
}

const std::vector<uint8_t>& noise() {
  static const std::vector<uint8_t> bytes = [] {
    std::vector<uint8_t> all(size_t{4} << 20);
    std::mt19937 random(17);
    for (auto& byte : all) byte = static_cast<uint8_t>(random());
    return all;
  }();
  return bytes;
}

// What the output must be, by memcpy, and the first position out of range.
unsigned long long gather_simply(const Case& it, const uint8_t* table, uint8_t* target) {
  unsigned long long bad_position = kNoPosition;
  for (size_t at = it.index.size(); at-- > 0;) {
    const int64_t row = it.index[at] < 0 ? it.index[at] + static_cast<int64_t>(it.row_count) : it.index[at];
    if (row < 0 || row >= static_cast<int64_t>(it.row_count)) {
      bad_position = at;
      continue;
    }
    const size_t target_row = it.target_position.empty() ? at : static_cast<size_t>(it.target_position[at]);
    std::memcpy(target + target_row * it.target_stride(), table + static_cast<size_t>(row) * it.source_stride(),
                it.row_bytes);
  }
  return bad_position;
}

template <class Launch>
void check_launcher(const char* name, const Case& it, RowGather gather, const std::vector<uint8_t>& expected,
                    unsigned long long expected_bad, Launch launch) {
  const LineBlock target = allocate(it.target_end());
  std::memset(target.get(), kGuard, it.target_end());
  unsigned long long bad_position = kNoPosition;
  gather.target = target.get() + it.target_offset;
  gather.bad_position = &bad_position;
  launch(gather);
  if (!std::equal(expected.begin(), expected.end(), target.get()))
    check::fail(__FILE__, __LINE__, std::string(name) + " differs: " + describe(it));
  if (bad_position != expected_bad)
    check::fail(__FILE__, __LINE__, std::string(name) + " reports another position: " + describe(it));
}

void check_case(const Case& it) {
  const LineBlock table = allocate(it.table_end());
  std::memcpy(table.get(), noise().data() + it.row_bytes % 64, it.table_end());
  std::vector<uint8_t> expected(it.target_end(), kGuard);
  expected.reserve(1);  // so that there is an address even of nothing
  const auto bad_position = gather_simply(it, table.get() + it.source_offset, expected.data() + it.target_offset);
  const std::vector<int32_t> narrow(it.index.begin(), it.index.end());
  const void* index = it.index_type == IndexType::int32 ? static_cast<const void*>(narrow.data()) : it.index.data();
  const RowGather gather{.table = table.get() + it.source_offset,
                         .row_bytes = static_cast<int64_t>(it.row_bytes),
                         .row_stride_bytes = static_cast<int64_t>(it.source_stride()),
                         .row_count = static_cast<int64_t>(it.row_count),
                         .index = index,
                         .index_type = it.index_type,
                         .index_count = static_cast<int64_t>(it.index.size()),
                         .target_stride_bytes = static_cast<int64_t>(it.target_stride()),
                         .target_position = it.target_position.empty() ? nullptr : it.target_position.data()};
  check_launcher("the plain gather", it, gather, expected, bad_position,
                 [](const RowGather& rows) { host_kernels::gather_rows_plain(rows, 0); });
  check_launcher("the aligned gather", it, gather, expected, bad_position,
                 [&](const RowGather& rows) { host_kernels::gather_rows_aligned(rows, it.max_blocks, 0); });
}

// A case with indices of every kind: negative, repeated, and now and then out of range.
Case draw(std::mt19937& random, size_t row_bytes) {
  const auto below = [&](size_t end) { return random() % end; };
  Case it{.row_bytes = row_bytes, .row_count = 1 + below(30)};
  it.index.resize(below(80));
  const auto rows = static_cast<int64_t>(it.row_count);
  const int64_t beyond = below(2) == 0 ? 0 : 3;
  for (auto& index : it.index) index = static_cast<int64_t>(below(size_t(2 * (rows + beyond)))) - rows - beyond;
  it.index_type = below(2) == 0 ? IndexType::int32 : IndexType::int64;
  if (below(2) == 0) {
    for (size_t at = 0; at < it.index.size(); ++at) it.target_position.push_back(static_cast<int64_t>(at));
    std::shuffle(it.target_position.begin(), it.target_position.end(), random);
  }
  it.source_offset = below(kLineBytes);
  it.target_offset = below(kLineBytes);
  it.source_gap = below(3) == 0 ? below(200) : 0;
  it.target_gap = below(3) == 0 ? below(200) : 0;
  it.max_blocks = static_cast<int64_t>(below(3));
  return it;
}

}  // namespace

TEST(compose_takes_sixteen_bytes_from_any_byte_on) {
  uint8_t bytes[32];
  std::memcpy(bytes, noise().data(), sizeof(bytes));
  Chunk before, held;
  std::memcpy(&before, bytes, 16);
  std::memcpy(&held, bytes + 16, 16);
  for (int shift = 0; shift <= kChunkBytes; ++shift) {
    const Chunk chunk = compose(before, held, shift);
    CHECK(std::memcmp(&chunk, bytes + shift, 16) == 0);
  }
}

TEST(lanes_read_each_chunk_of_a_row_once_and_no_other) {
  for (const int64_t row_bytes : {0, 1, 4, 17, 18, 49, 50, 100, 128, 129, 512, 2408, 4096, 5000, 9001})
    for (uint64_t source = 4096; source < 4096 + kLineBytes; ++source) {
      const RowSpan row{source, 0, row_bytes};
      const int lanes = gather_shape(row_bytes).lanes;
      uint64_t next = source / 16 * 16;
      for (int64_t turn = 0; turn < turn_count(row, lanes); ++turn)
        for (int lane = 0; lane < lanes; ++lane) {
          const LaneRead read = aligned_read(row, lanes, turn, lane);
          if (read.bytes == 0) continue;
          CHECK_EQUAL(read.address, next);
          CHECK_EQUAL(read.bytes, 16);
          next += 16;
        }
      if (row_bytes > 0) CHECK_EQUAL(next, (source + static_cast<uint64_t>(row_bytes) + 15) / 16 * 16);
    }
}

TEST(gather_equals_memcpy_for_every_narrow_width_and_alignment) {
  for (size_t row_bytes = 1; row_bytes <= 300; ++row_bytes)
    for (size_t source = 0; source < 16; ++source)
      for (size_t target = 0; target < 16; ++target) {
        const auto lines = (row_bytes + source + 3 * target) % 8 * 16;  // walks through the line as well
        check_case({.row_bytes = row_bytes,
                    .row_count = 3,
                    .index = {2, 0, -2, 7, 0},
                    .index_type = target % 2 == 0 ? IndexType::int32 : IndexType::int64,
                    .source_offset = source + lines,
                    .target_offset = target,
                    .target_gap = target % 3});
      }
}

TEST(gather_equals_memcpy_for_a_sample_of_everything) {
  std::mt19937 random(2024);
  for (int sample = 0; sample < 4000; ++sample) check_case(draw(random, random() % 600));
  for (int sample = 0; sample < 600; ++sample) check_case(draw(random, 300 + random() % 4701));
  for (int sample = 0; sample < 100; ++sample) check_case(draw(random, 4000 + random() % 16'000));
}

TEST(gather_at_the_edges_of_the_shapes) {
  std::mt19937 random(5);
  for (const size_t row_bytes : {17u, 18u, 49u, 50u, 128u, 129u, 4095u, 4096u, 8191u, 8192u})
    for (int sample = 0; sample < 100; ++sample) check_case(draw(random, row_bytes));
}

TEST(gather_reports_the_first_position_out_of_range_and_leaves_its_row) {
  for (const size_t row_bytes : {1u, 16u, 40u, 100u, 512u, 5000u})
    for (const auto type : {IndexType::int32, IndexType::int64}) {
      Case it{.row_bytes = row_bytes, .row_count = 4, .index = {3, -4, 0, 4, 1, -5, 2}, .index_type = type};
      check_case(it);
      it.index.assign(100, 3);
      it.index[99] = 4;  // in the last tile
      check_case(it);
      it.row_count = 0;  // then every index is out of range
      check_case(it);
    }
}

TEST(gather_of_nothing) {
  host_kernels::gather_rows_plain({}, 0);
  host_kernels::gather_rows_aligned({}, 0, 0);
  check_case({.row_bytes = 12, .row_count = 3});
  check_case({.row_bytes = 0, .row_count = 3, .index = {0, 2}});
  check_case({.row_bytes = 0, .row_count = 3, .index = {0, 2, 3, -4}});  // rows without bytes have indices too
  check_case({.row_bytes = 0, .row_count = 3, .index = {1}, .source_gap = 24, .target_gap = 8});
}

TEST(gather_takes_strides_of_any_sign) {
  std::vector<uint8_t> table(noise().begin(), noise().begin() + 1000), target(400), expected(400);
  const std::vector<int64_t> index{0, 3, -1};
  RowGather gather{.row_bytes = 100, .row_count = 4, .index = index.data(), .index_count = 3};
  gather.target = target.data() + 250;
  gather.target_stride_bytes = -110;
  for (const int64_t stride : {int64_t{0}, int64_t{-120}}) {
    gather.table = table.data() + 600;
    gather.row_stride_bytes = stride;
    for (size_t at = 0; at < 3; ++at)
      std::memcpy(expected.data() + 250 - 110 * at, table.data() + 600 + stride * (at == 0 ? 0 : 3), 100);
    std::fill(target.begin(), target.end(), uint8_t{0});
    host_kernels::gather_rows_aligned(gather, 0, 0);
    CHECK(target == expected);
    std::fill(target.begin(), target.end(), uint8_t{0});
    host_kernels::gather_rows_plain(gather, 0);
    CHECK(target == expected);
  }
}

TEST(gather_finds_rows_past_four_gigabytes) {
  const int64_t row = 3'000'000'000, index = -1'000'000'000;
  RowGather gather{.row_bytes = 2408, .row_stride_bytes = 2408, .row_count = row + 1'000'000'000, .index = &index};
  gather.index_count = 1;
  gather.target_stride_bytes = 5;
  CHECK_EQUAL(find_row(gather, 0).source, uint64_t{2408} * 3'000'000'000u);
  gather.target_position = &row;
  CHECK_EQUAL(find_row(gather, 0).target, uint64_t{15'000'000'000});
}

TEST(gather_looks_up_few_rows_by_many_warps_and_many_rows_at_once) {
  const GatherShape shape = gather_shape(2408);
  CHECK_EQUAL(tile_rows(shape, 1000, gather_warps(0)), shape.round_rows());
  CHECK_EQUAL(tile_rows(shape, 1'000'000, gather_warps(8)), kWarpLanes);
  for (const int64_t row_bytes : {4, 40, 100, 400, 5000, 9000})
    CHECK_EQUAL(tile_rows(gather_shape(row_bytes), 1'000'000'000, 16) % gather_shape(row_bytes).round_rows(), 0);
}
