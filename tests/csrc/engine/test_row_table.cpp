// Rows gathered from a table: what memcpy gives at every size at which the table changes its way (one thread or many,
// through the caches or past them); the first bad index, and not a row written with it; a forked child finds the table
// and gathers alone.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <random>
#include <thread>

#include "csrc/engine/rig.h"
#include "engine/row_table.h"

using namespace memsys;
using io_test::Block;

namespace {

// Where row_table.cpp changes its way.
constexpr int64_t kParallelBytes = int64_t{512} << 10, kStreamingBytes = int64_t{32} << 20;
constexpr int64_t kParallelIndices = 64 << 10;
constexpr int64_t kGuardBytes = 128;
constexpr char kGuard = '\x5a';

std::shared_ptr<Runtime> host_runtime(std::optional<uint64_t> seed = {}) {
  return make_runtime({.seed = seed, .io = {}});
}

struct Shape {
  int64_t row_count = 0, row_bytes = 0, helper_count = 0;
};

RowTable make_table(const std::shared_ptr<Runtime>& runtime, const Shape& shape, ForeignPool pool = nullptr) {
  return RowTable({.runtime = runtime,
                   .row_count = shape.row_count,
                   .row_bytes = shape.row_bytes,
                   .helper_count = shape.helper_count,
                   .pool = pool});
}

// Each row differs from every other, and within itself.
void fill_table(const RowTable& table) {
  auto* bytes = static_cast<char*>(table.data());
  uint64_t state = 1;
  for (int64_t at = 0; at < table.size_bytes(); ++at)
    bytes[at] = static_cast<char>((state = state * 6364136223846793005U + 1442695040888963407U) >> 56);
}

std::vector<int64_t> draw_index(int64_t row_count, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> index(static_cast<size_t>(count));
  for (int64_t& one : index) one = static_cast<int64_t>(random() % static_cast<uint64_t>(2 * row_count)) - row_count;
  return index;
}

// The rows of one gather, with guards on both sides; `shift` bytes from a line.
class Rows {
 public:
  Rows(int64_t bytes, int64_t shift) : bytes_(bytes), block_(bytes + 2 * kGuardBytes, shift) {
    std::memset(block_.data(), kGuard, static_cast<size_t>(bytes_ + 2 * kGuardBytes));
  }
  char* data() const { return reinterpret_cast<char*>(block_.data()) + kGuardBytes; }
  bool is_untouched(int64_t begin, int64_t end) const {
    return std::all_of(data() + begin, data() + end, [](char byte) { return byte == kGuard; });
  }
  bool has_guards() const { return is_untouched(-kGuardBytes, 0) && is_untouched(bytes_, bytes_ + kGuardBytes); }

 private:
  int64_t bytes_;
  Block block_;
};

bool is_gathered(const char* table, int64_t stride_bytes, const Shape& shape, const std::vector<int64_t>& index,
                 const char* rows) {
  for (size_t at = 0; at < index.size(); ++at) {
    const int64_t row = index[at] < 0 ? index[at] + shape.row_count : index[at];
    if (std::memcmp(rows + static_cast<int64_t>(at) * shape.row_bytes, table + row * stride_bytes,
                    static_cast<size_t>(shape.row_bytes)) != 0)
      return false;
  }
  return true;
}

// Gathers with both types of index, on a few numbers of threads.
void check_gather(RowTable& table, const Shape& shape, int64_t stride_bytes, int64_t count) {
  const std::vector<int64_t> wide = draw_index(shape.row_count, count, static_cast<uint64_t>(count));
  const std::vector<int32_t> narrow(wide.begin(), wide.end());
  for (const int64_t thread_count : {1, 2, 4}) {
    const bool is_narrow = thread_count == 2;
    const Rows rows(count * shape.row_bytes, 3 * thread_count);
    GatherRequest request{.index = wide.data(), .index_count = count, .rows = rows.data(), .backend = {}};
    if (is_narrow) request.index = narrow.data();
    request.index_type = is_narrow ? IndexType::int32 : IndexType::int64;
    request.thread_count = thread_count;
    CHECK_EQUAL(table.gather(request), -1);
    CHECK(is_gathered(static_cast<const char*>(table.data()), stride_bytes, shape, wide, rows.data()));
    CHECK(rows.has_guards());
  }
}

void check_shape(const Shape& shape, int64_t count, std::optional<uint64_t> seed = {}) {
  const auto runtime = host_runtime(seed);
  RowTable table = make_table(runtime, shape);
  fill_table(table);
  check_gather(table, shape, shape.row_bytes, count);
}

void two_thread_pool(void (*function)(void*), void* data, unsigned, unsigned) {
  std::thread other(function, data);
  function(data);
  other.join();
}

}  // namespace

TEST(table_gathers_at_both_sides_of_each_threshold) {
  for (const int64_t bytes : {int64_t{1000}, kParallelBytes, kStreamingBytes})
    for (const int64_t row_bytes : {100, 256, 2408})
      for (const int64_t count : {bytes / row_bytes - 1, bytes / row_bytes, bytes / row_bytes + 1})
        check_shape({.row_count = 3000, .row_bytes = row_bytes, .helper_count = 3}, std::max<int64_t>(count, 0));
}

TEST(table_gathers_rows_wider_than_a_piece_and_lists_longer_than_a_batch) {
  check_shape({.row_count = 5, .row_bytes = 200'001, .helper_count = 2}, 11);
  check_shape({.row_count = 7, .row_bytes = 200'001, .helper_count = 2}, 47);
  check_shape({.row_count = 1000, .row_bytes = 1, .helper_count = 2}, kParallelBytes + 3);
  check_shape({.row_count = 100'000, .row_bytes = 12, .helper_count = 0}, kParallelIndices + 1);
  check_shape({.row_count = 40'000, .row_bytes = 129, .helper_count = 2}, 3 * kParallelIndices / 2);
}

TEST(table_gathers_under_a_seeded_executor) {
  for (uint64_t seed = 0; seed < 5; ++seed)
    check_shape({.row_count = 30'000, .row_bytes = 100, .helper_count = 3}, 9000, seed);
}

TEST(table_gathers_on_a_foreign_pool) {
  const Shape shape{.row_count = 3000, .row_bytes = 100, .helper_count = 3};
  RowTable table = make_table(host_runtime(), shape, two_thread_pool);
  fill_table(table);
  for (const int64_t count : {10, 20'000, 100'000}) check_gather(table, shape, shape.row_bytes, count);
}

TEST(table_gathers_with_every_backend_and_refuses_an_unknown_one) {
  const Shape shape{.row_count = 50, .row_bytes = 77};
  RowTable table = make_table(host_runtime(), shape);
  fill_table(table);
  const std::vector<int64_t> index = draw_index(50, 300, 1);
  const auto gather = [&](const std::string& backend, const Rows& rows) {
    return table.gather({.index = index.data(), .index_count = 300, .rows = rows.data(), .backend = backend});
  };
  for (const RowCopyBackend& backend : row_copy_backends()) {
    const Rows rows(300 * 77, 5);
    if (!backend.is_supported()) {
      CHECK_THROWS(gather(backend.name, rows), InputError);
      continue;
    }
    CHECK_EQUAL(gather(backend.name, rows), -1);
    CHECK(is_gathered(static_cast<const char*>(table.data()), 77, shape, index, rows.data()));
  }
  CHECK_THROWS(gather("abacus", Rows(300 * 77, 0)), InputError);
}

TEST(table_reports_the_first_bad_index_and_writes_nothing) {
  const Shape shape{.row_count = 100, .row_bytes = 8, .helper_count = 3};
  RowTable table = make_table(host_runtime(), shape);
  for (const int64_t count : {int64_t{50}, kParallelIndices - 1, kParallelIndices, 4 * kParallelIndices + 7}) {
    const std::vector<int64_t> good = draw_index(100, count, 3);
    const Rows rows(count * 8, 0);
    for (const int64_t first :
         {int64_t{0}, int64_t{1}, count / 3, count / 2, int64_t{16383}, int64_t{16384}, count - 1})
      for (const int64_t thread_count : {1, 4}) {
        if (first >= count) continue;
        std::vector<int64_t> index = good;
        for (int64_t at = first; at < count; at += 1 + at / 5)
          index[static_cast<size_t>(at)] = at % 2 == 0 ? 100 : -101;
        index.back() = std::numeric_limits<int64_t>::min();
        GatherRequest request{.index = index.data(), .index_count = count, .rows = rows.data(), .backend = {}};
        request.thread_count = thread_count;
        CHECK_EQUAL(table.gather(request), first);
        CHECK(rows.is_untouched(-kGuardBytes, count * 8 + kGuardBytes));
      }
  }
}

TEST(table_adopts_rows_at_a_stride) {
  for (const int64_t stride_bytes : {100, 101, 640}) {
    const Shape shape{.row_count = 5000, .row_bytes = 100, .helper_count = 2};
    const int64_t bytes = 4999 * stride_bytes + 100;
    const std::vector<char> memory = [&] {
      std::vector<char> all(static_cast<size_t>(bytes));
      for (size_t at = 0; at < all.size(); ++at) all[at] = static_cast<char>(at * 2654435761U >> 13);
      return all;
    }();
    RowTable table({.runtime = host_runtime(),
                    .row_count = shape.row_count,
                    .row_bytes = shape.row_bytes,
                    .row_stride_bytes = stride_bytes,
                    .adopted = const_cast<char*>(memory.data()),
                    .helper_count = shape.helper_count});
    CHECK(table.data() == memory.data());
    CHECK_EQUAL(table.size_bytes(), bytes);
    for (const int64_t count : {7, 20'000, 90'000}) check_gather(table, shape, stride_bytes, count);
  }
}

TEST(table_without_rows_or_without_width) {
  const auto runtime = host_runtime();
  const std::vector<int64_t> index{0, -1, 2, 3};
  const Rows rows(64, 0);
  RowTable none = make_table(runtime, {.row_count = 0, .row_bytes = 16}), flat = make_table(runtime, {.row_count = 3});
  CHECK_EQUAL(none.size_bytes(), 0);
  CHECK_EQUAL(flat.size_bytes(), 0);
  GatherRequest request{.index = index.data(), .index_count = 4, .rows = rows.data(), .backend = {}};
  CHECK_EQUAL(none.gather(request), 0);  // no index is right
  CHECK_EQUAL(flat.gather(request), 3);
  request.index_count = 3;
  CHECK_EQUAL(flat.gather(request), -1);
  request.index_count = 0;
  CHECK_EQUAL(none.gather(request), -1);
  CHECK(rows.is_untouched(-kGuardBytes, 64 + kGuardBytes));
}

TEST(table_refuses_sizes_that_make_no_sense) {
  const auto runtime = host_runtime();
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const Shape& shape : {Shape{huge, 8}, Shape{int64_t{1} << 33, int64_t{1} << 33}, Shape{huge, huge},
                             Shape{2, huge}, Shape{-1, 8}, Shape{8, -1}, Shape{8, 8, -1}})
    CHECK_THROWS(make_table(runtime, shape), InputError);
  CHECK_EQUAL(make_table(runtime, {huge, 0}).size_bytes(), 0);
}

TEST(table_gathers_in_a_forked_child) {
  const Shape shape{.row_count = 20'000, .row_bytes = 100, .helper_count = 2};
  RowTable table = make_table(host_runtime(), shape);
  fill_table(table);
  const std::vector<int64_t> index = draw_index(20'000, 70'000, 1);
  const Rows rows(70'000 * 100, 0);
  const pid_t child = fork();
  if (child == 0) {
    const int64_t bad =
        table.gather({.index = index.data(), .index_count = 70'000, .rows = rows.data(), .backend = {}});
    const auto* bytes = static_cast<const char*>(table.data());
    _exit(bad == -1 && is_gathered(bytes, 100, shape, index, rows.data()) ? 0 : 1);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
