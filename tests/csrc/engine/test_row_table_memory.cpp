// A row table's memory: it begins at a pair of lines, and what gathered rows take is reused without touching its pages
// anew, is given back when asked, and may be asked for by several threads at once.
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "csrc/check.h"
#include "engine/row_table.h"

using namespace memsys;

namespace {

RowTable make_table(int64_t row_count, int64_t row_bytes) {
  return RowTable({.runtime = make_runtime({}), .row_count = row_count, .row_bytes = row_bytes, .helper_count = 1});
}

}  // namespace

TEST(table_memory_begins_at_two_lines) {
  for (const int64_t row_count : {1, 3, 1000, 50'000}) {
    const RowTable table = make_table(row_count, 60);
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(table.data()) % 128, uintptr_t{0});
    CHECK_EQUAL(table.size_bytes(), row_count * 60);
  }
}

// Reused pages hold what they held; fresh ones would be zeros, and would have to be touched again.
TEST(table_reuses_memory_for_rows_and_gives_it_back) {
  for (const int64_t bytes : {int64_t{100}, int64_t{100'000}, int64_t{9} << 20, int64_t{40} << 20}) {
    RowTable table = make_table(4, 8);
    CHECK_EQUAL(table.pool_bytes(), 0);
    const auto held = table.allocate_rows(bytes);
    const int64_t pool_bytes_of_one = table.pool_bytes();
    const auto* first = static_cast<const unsigned char*>(table.allocate_rows(bytes)->data());
    const int64_t pool_bytes = table.pool_bytes();
    CHECK(pool_bytes_of_one >= bytes && pool_bytes >= pool_bytes_of_one);
    for (int step = 0; step < 10; ++step) {
      const auto rows = table.allocate_rows(bytes);
      CHECK(rows->data() == first && rows->data() != held->data());
      CHECK_EQUAL(table.pool_bytes(), pool_bytes);
    }
    table.trim();
    std::memset(held->data(), 1, static_cast<size_t>(bytes));  // what somebody holds stays
    CHECK_EQUAL(table.pool_bytes(), pool_bytes_of_one);
  }
}

TEST(table_keeps_the_pages_of_rows_between_steps) {
  for (const int64_t bytes : {int64_t{100}, int64_t{100'000}, int64_t{9} << 20, int64_t{40} << 20}) {
    RowTable table = make_table(4, 8);
    std::memset(table.allocate_rows(bytes)->data(), 0x77, static_cast<size_t>(bytes));
    for (int step = 0; step < 4; ++step) {  // nobody holds any between two steps
      const auto rows = table.allocate_rows(bytes);
      CHECK_EQUAL(int{static_cast<const unsigned char*>(rows->data())[bytes - 1]}, 0x77);
    }
    CHECK(table.trim() >= bytes);
    CHECK_EQUAL(table.pool_bytes(), 0);
  }
}

TEST(table_gives_memory_for_rows_to_several_threads_at_once) {
  RowTable table = make_table(4, 8);
  std::atomic<int64_t> shared_count{0};
  std::vector<std::thread> threads;
  for (int thread = 1; thread <= 4; ++thread)
    threads.emplace_back([&, thread] {
      for (int64_t step = 0; step < 200; ++step) {
        const int64_t bytes = 1000 * thread + step;
        const auto rows = table.allocate_rows(bytes);
        auto* begin = static_cast<unsigned char*>(rows->data());
        std::memset(begin, thread, static_cast<size_t>(bytes));
        if (begin[0] != thread || begin[bytes - 1] != thread) shared_count.fetch_add(1);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(shared_count.load(), 0);
  table.trim();
  CHECK_EQUAL(table.pool_bytes(), 0);
}
