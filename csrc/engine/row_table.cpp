// See row_table.h.
#include "engine/row_table.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {
namespace {

// Copied by one thread at a time: large enough to hide the start, when no row is on its way yet, and small enough that
// the last piece is no wait.
constexpr int64_t kMinPieceBytes = 64 * kKiB, kMaxPieceBytes = 1 * kMiB;
constexpr int64_t kPiecesPerThread = 16;
constexpr int64_t kPieceIndices = 16 * 1024;
// Below this, waking a helper takes longer than what it would save.
constexpr int64_t kParallelBytes = 512 * kKiB;
constexpr int64_t kParallelIndices = 64 * 1024;
// Output that no cache holds until its reader comes: written past the caches.
constexpr int64_t kStreamingBytes = 32 * kMiB;

StorePath choose_path(const RowCopy& copy, int64_t count) {
  return copy.row_bytes * count >= kStreamingBytes ? StorePath::streaming : StorePath::cached;
}

const RowCopyBackend& backend_named(const std::string& name) {
  if (name.empty()) return row_copy_backend();
  for (const RowCopyBackend& backend : row_copy_backends())
    if (name == backend.name && backend.is_supported()) return backend;
  throw InputError("row copy backend '" + name + "' is not one that this CPU runs; leave the backend empty");
}

}  // namespace

RowTable::RowTable(RowTableOptions options)
    : options_(std::move(options)), team_(options_.runtime->executor, options_.helper_count, options_.pool) {
  MEMSYS_EXPECT(options_.row_count >= 0 && options_.row_bytes >= 0, InputError,
                "a table of " + std::to_string(options_.row_count) + " rows of " + std::to_string(options_.row_bytes) +
                    " bytes was asked for; give 0 or more of both");
  if (options_.adopted == nullptr) options_.row_stride_bytes = options_.row_bytes;
  // Nobody touches the pages here: whoever fills them does, on all its threads, and so near to the cores that will
  // read.
  const auto pages = options_.runtime->with_faults(make_mmap_resource(ForkView::copy));
  pool_ = make_arena(pages);
  data_ = options_.adopted;
  const int64_t bytes = size_bytes();
  if (data_ != nullptr || bytes == 0) return;
  memory_ = Buffer(pages, bytes);
  data_ = memory_.data();
}

int64_t RowTable::size_bytes() const {
  if (options_.row_count == 0) return 0;
  return checked_add(checked_multiply(options_.row_count - 1, options_.row_stride_bytes), options_.row_bytes);
}

std::shared_ptr<Buffer> RowTable::allocate_rows(int64_t bytes) {
  // Between two and four times the largest output stays, and never less than a slab: what readers hold and what is
  // being filled.
  int64_t largest = largest_rows_bytes_.load();
  while (bytes > largest && !largest_rows_bytes_.compare_exchange_weak(largest, bytes)) {
  }
  largest = std::max(largest, bytes);
  if (pool_->stats().reserved_bytes > 4 * largest) pool_->trim(2 * largest);
  return std::make_shared<Buffer>(pool_, bytes);
}

int64_t RowTable::gather(const GatherRequest& request) {
  RowCopy copy{.table = static_cast<const char*>(data_),
               .row_bytes = options_.row_bytes,
               .row_stride_bytes = options_.row_stride_bytes,
               .row_count = options_.row_count,
               .index = request.index,
               .index_type = request.index_type,
               .packed = static_cast<char*>(request.rows),
               .packed_stride_bytes = options_.row_bytes};
  const RowCopyBackend& backend = backend_named(request.backend);
  const int64_t count = request.index_count;
  const int64_t bad = find_bad(copy, backend, count, request.thread_count);
  if (bad >= 0 || count == 0 || options_.row_bytes == 0) return bad;
  copy.store_path = choose_path(copy, count);
  copy_rows(copy, backend, count, request.thread_count);
  return -1;
}

int64_t RowTable::find_bad(const RowCopy& copy, const RowCopyBackend& backend, int64_t count, int64_t thread_count) {
  if (count < kParallelIndices) return backend.find_bad_index(copy, 0, count);
  std::atomic<int64_t> first{std::numeric_limits<int64_t>::max()};
  team_.run((count + kPieceIndices - 1) / kPieceIndices, thread_count, [&](int64_t piece) {
    const int64_t begin = piece * kPieceIndices;
    if (begin > first.load()) return;
    const int64_t bad = backend.find_bad_index(copy, begin, std::min(count, begin + kPieceIndices));
    for (int64_t seen = first.load(); bad >= 0 && bad < seen && !first.compare_exchange_weak(seen, bad);) {
    }
  });
  return first.load() == std::numeric_limits<int64_t>::max() ? -1 : first.load();
}

void RowTable::copy_rows(const RowCopy& copy, const RowCopyBackend& backend, int64_t count, int64_t thread_count) {
  if (copy.row_bytes * count < kParallelBytes) return backend.gather(copy, 0, count);
  const int64_t piece_bytes =
      std::clamp(copy.row_bytes * count / (thread_count * kPiecesPerThread), kMinPieceBytes, kMaxPieceBytes);
  const int64_t piece_rows = std::max<int64_t>(piece_bytes / copy.row_bytes, 1);
  team_.run((count + piece_rows - 1) / piece_rows, thread_count, [&](int64_t piece) {
    const int64_t begin = piece * piece_rows;
    backend.gather(copy, begin, std::min(count, begin + piece_rows));
  });
}

}  // namespace memsys
