// Rows copied by a CPU: every backend that this machine runs gives what memcpy gives, for every width, alignment and
// way of storing, and writes no other byte, not even of a line that it shares. Blocks end where rows end, on the heap
// (for the address sanitizer) and at a forbidden page (for masked loads and stores, which no sanitizer sees).
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "csrc/check.h"
#include "kernels/row_copy.h"

using namespace memsys;

namespace {

constexpr char kGuard = '\x5a';
constexpr int64_t kLine = 64;
constexpr int64_t kGuardBytes = 2 * kLine;

// Memory that begins `offset` bytes past a line, and ends exactly with its bytes.
class Block {
 public:
  Block(int64_t bytes, int64_t offset)
      : bytes_(bytes),
        offset_(offset),
        memory_(static_cast<char*>(operator new (static_cast<size_t>(bytes + offset), std::align_val_t{kLine}))) {}
  ~Block() { operator delete (memory_, std::align_val_t{kLine}); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  char* data() const { return memory_ + offset_; }
  void fill(char value) const { std::memset(data(), value, static_cast<size_t>(bytes_)); }
  void fill_with_noise() const {
    uint64_t state = 0x9e3779b97f4a7c15U + static_cast<uint64_t>(bytes_);
    for (int64_t at = 0; at < bytes_; ++at)
      data()[at] = static_cast<char>((state = state * 6364136223846793005U + 1442695040888963407U) >> 56);
  }
  bool equals(const Block& other) const { return std::memcmp(data(), other.data(), static_cast<size_t>(bytes_)) == 0; }

 private:
  const int64_t bytes_, offset_;
  char* const memory_;
};

// Pages between two that nobody may touch.
class FencedPages {
 public:
  FencedPages() : pages_(mmap(nullptr, kBytes + 2 * kFence, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    CHECK(pages_ != MAP_FAILED && mprotect(begin(), kBytes, PROT_READ | PROT_WRITE) == 0);
  }
  ~FencedPages() { munmap(pages_, kBytes + 2 * kFence); }
  FencedPages(const FencedPages&) = delete;
  FencedPages& operator=(const FencedPages&) = delete;
  char* begin() const { return static_cast<char*>(pages_) + kFence; }
  char* end() const { return begin() + kBytes; }
  static constexpr size_t kBytes = 256 << 10, kFence = 64 << 10;

 private:
  void* pages_;
};

struct Case {
  int64_t row_bytes = 1;
  int64_t row_count = 1;
  std::vector<int64_t> index = {};
  IndexType index_type = IndexType::int64;
  int64_t begin = 0, end = 0;
  int64_t table_offset = 0, target_offset = 0;  // from a line
  int64_t table_gap = 0, target_gap = 0;        // between rows

  int64_t table_bytes() const { return (row_count - 1) * (row_bytes + table_gap) + row_bytes; }
  int64_t target_bytes() const { return static_cast<int64_t>(index.size()) * (row_bytes + target_gap); }
};

std::string describe(const Case& it, const RowCopyBackend& backend, StorePath path) {
  std::ostringstream text;
  text << backend.name << (path == StorePath::streaming ? " streaming: [" : " cached: [") << it.begin << ", " << it.end
       << ") of " << it.index.size() << " indices into " << it.row_count << " rows of " << it.row_bytes
       << " bytes, offsets " << it.table_offset << " and " << it.target_offset << ", gaps " << it.table_gap << " and "
       << it.target_gap;
  return text.str();
}

RowCopy copy_of(const Case& it, const std::vector<int32_t>& narrow, const char* table, char* target) {
  const bool is_narrow = it.index_type == IndexType::int32;
  return {.table = table,
          .row_bytes = it.row_bytes,
          .row_stride_bytes = it.row_bytes + it.table_gap,
          .row_count = it.row_count,
          .index = is_narrow ? static_cast<const void*>(narrow.data()) : it.index.data(),
          .index_type = it.index_type,
          .packed = target,
          .packed_stride_bytes = it.row_bytes + it.target_gap};
}

void gather_simply(const Case& it, const char* table, char* target) {
  for (int64_t at = it.begin; at < it.end; ++at) {
    const int64_t index = it.index[static_cast<size_t>(at)];
    std::memcpy(target + at * (it.row_bytes + it.target_gap),
                table + (index < 0 ? index + it.row_count : index) * (it.row_bytes + it.table_gap),
                static_cast<size_t>(it.row_bytes));
  }
}

void for_each_backend(const std::function<void(const RowCopyBackend&)>& body) {
  for (const RowCopyBackend& backend : row_copy_backends())
    if (backend.is_supported()) body(backend);
}

void check_case(const Case& it) {
  const Block table(it.table_bytes(), it.table_offset);
  table.fill_with_noise();
  const int64_t room = it.target_bytes() + 2 * kGuardBytes;
  const Block expected(room, it.target_offset), found(room, it.target_offset);
  expected.fill(kGuard);
  gather_simply(it, table.data(), expected.data() + kGuardBytes);
  const std::vector<int32_t> narrow(it.index.begin(), it.index.end());
  RowCopy copy = copy_of(it, narrow, table.data(), found.data() + kGuardBytes);
  for_each_backend([&](const RowCopyBackend& backend) {
    for (const StorePath path : {StorePath::cached, StorePath::streaming}) {
      found.fill(kGuard);
      copy.store_path = path;
      backend.gather(copy, it.begin, it.end);
      if (!found.equals(expected)) check::fail(__FILE__, __LINE__, describe(it, backend, path));
    }
  });
}

std::vector<int64_t> draw_index(std::mt19937& random, int64_t row_count, size_t count) {
  std::vector<int64_t> index(count);
  for (int64_t& one : index) one = std::uniform_int_distribution<int64_t>(-row_count, row_count - 1)(random);
  return index;
}

// Up to `most_bytes` of output, by indices of every kind; now and then a part of it, or with gaps.
Case draw(std::mt19937& random, int64_t row_bytes, int64_t most_bytes) {
  const auto below = [&](int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(random); };
  Case it{.row_bytes = row_bytes, .row_count = 1 + below(30)};
  it.index = draw_index(random, it.row_count, static_cast<size_t>(1 + below(most_bytes / row_bytes + 20)));
  it.index_type = below(2) == 0 ? IndexType::int32 : IndexType::int64;
  it.end = static_cast<int64_t>(it.index.size());
  if (below(2) == 0) it.begin = below(it.end + 1);
  if (below(2) == 0) it.end = it.begin + below(it.end - it.begin + 1);
  it.table_offset = below(kLine);
  it.target_offset = below(kLine);
  it.table_gap = below(3) == 0 ? below(200) : 0;
  it.target_gap = below(5) == 0 ? below(200) : 0;
  return it;
}

}  // namespace

TEST(row_copy_equals_memcpy_for_every_narrow_width) {
  std::mt19937 random(1);
  for (int64_t row_bytes = 1; row_bytes <= 200; ++row_bytes)
    for (int sample = 0; sample < 8; ++sample) check_case(draw(random, row_bytes, 12'000));
}

TEST(row_copy_equals_memcpy_for_a_sample_of_wide_rows) {
  std::mt19937 random(2);
  for (int sample = 0; sample < 300; ++sample)
    check_case(draw(random, 200 + static_cast<int64_t>(random() % 9801), 30'000));
  for (const int64_t row_bytes : {255, 256, 257, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193, 10'000})
    for (int sample = 0; sample < 12; ++sample) check_case(draw(random, row_bytes, 40'000));
}

TEST(row_copy_equals_memcpy_at_every_offset_from_a_line) {
  std::mt19937 random(3);
  for (const int64_t row_bytes : {1, 7, 31, 32, 33, 63, 64, 65, 100, 129, 400})
    for (int64_t target_offset = 0; target_offset < kLine; ++target_offset) {
      Case it{.row_bytes = row_bytes, .row_count = 9, .index = draw_index(random, 9, 1 + random() % 40)};
      it.end = static_cast<int64_t>(it.index.size());
      it.table_offset = target_offset * 37 % kLine;  // all of them, in another order
      it.target_offset = target_offset;
      check_case(it);
      it.begin = std::min<int64_t>(it.end, 1 + static_cast<int64_t>(random() % 3));
      check_case(it);
    }
}

TEST(row_copy_touches_no_page_beside_its_rows) {
  const FencedPages table, target;
  std::memset(table.begin(), 7, FencedPages::kBytes);
  std::mt19937 random(4);
  for (int64_t row_bytes = 1; row_bytes <= 10'000; row_bytes += row_bytes < 300 ? 1 : 97) {
    Case it{.row_bytes = row_bytes, .row_count = 3, .index = {2, 0, -1, 1, -3, 2, 0, 2}};
    it.end = 8;
    const std::vector<int32_t> narrow;
    for_each_backend([&](const RowCopyBackend& backend) {
      for (const StorePath path : {StorePath::cached, StorePath::streaming})
        for (const bool is_at_end : {false, true}) {
          char* rows = is_at_end ? target.end() - it.target_bytes() : target.begin();
          std::memset(rows, kGuard, static_cast<size_t>(it.target_bytes()));
          RowCopy copy = copy_of(it, narrow, is_at_end ? table.end() - it.table_bytes() : table.begin(), rows);
          copy.store_path = path;
          backend.gather(copy, 0, it.end);
          if (!std::all_of(rows, rows + it.target_bytes(), [](char byte) { return byte == 7; }))
            check::fail(__FILE__, __LINE__, describe(it, backend, path));
        }
    });
  }
}

// Two threads write pieces that meet inside a line. One that wrote a whole line back would undo what the other wrote.
TEST(row_copy_leaves_a_neighbours_bytes_of_a_shared_line) {
  constexpr int64_t kRowBytes = 21, kCount = 8, kRounds = 20'000;
  const Block table(2 * kRowBytes, 0), target(kCount * kRowBytes, 0);
  const std::vector<std::vector<int64_t>> index{std::vector<int64_t>(kCount, 0), std::vector<int64_t>(kCount, 1)};
  std::memset(table.data(), 'a', kRowBytes);
  std::memset(table.data() + kRowBytes, 'b', kRowBytes);
  for_each_backend([&](const RowCopyBackend& backend) {
    std::atomic<int64_t> lost_count{0}, ready_count{0};
    const auto write = [&](int64_t begin, int64_t end) {
      for (ready_count.fetch_add(1); ready_count.load() < 2;) std::this_thread::yield();
      RowCopy copy{.table = table.data(), .row_bytes = kRowBytes, .row_stride_bytes = kRowBytes, .row_count = 2};
      copy.packed = target.data();
      copy.packed_stride_bytes = kRowBytes;
      copy.store_path = StorePath::streaming;
      for (int64_t round = 0; round < kRounds; ++round) {
        copy.index = index[static_cast<size_t>(round % 2)].data();
        backend.gather(copy, begin, end);
        const char wanted = round % 2 == 0 ? 'a' : 'b';
        for (int64_t at = begin * kRowBytes; at < end * kRowBytes; ++at)
          if (static_cast<volatile char*>(target.data())[at] != wanted) lost_count.fetch_add(1);
      }
    };
    std::thread other([&] { write(4, kCount); });
    write(0, 4);
    other.join();
    CHECK_EQUAL(lost_count.load(), 0);
  });
}

TEST(row_copy_of_nothing) {
  check_case({.row_bytes = 5, .row_count = 2, .index = {1, 0, 1}, .begin = 2, .end = 2});
  check_case({.row_bytes = 0, .row_count = 2, .index = {1, 0, -1}, .end = 3});
  check_case({.row_bytes = 0, .row_count = 2, .index = {1, 0, -1}, .end = 3, .target_offset = 9, .table_gap = 4});
}

TEST(row_copy_chooses_the_fastest_supported_backend) {
  const auto all = row_copy_backends();
  CHECK(all.back().is_supported() && std::string(all.back().name) == "portable");
  const auto first = std::find_if(all.begin(), all.end(), [](const auto& backend) { return backend.is_supported(); });
  CHECK_EQUAL(std::string(row_copy_backend().name), std::string(first->name));
}
