// See tensor_reader.h.
#include "engine/tensor_reader.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "base/bytes.h"
#include "base/outlast.h"
#include "io/full_io.h"

namespace memsys {
namespace {

constexpr int64_t kPieceBytes = 8 * kMiB;

// Counts the pieces of one read down and keeps the first error.
struct Progress {
  std::atomic<int64_t> left_count{0};
  std::mutex mutex;
  std::exception_ptr error;

  void end(std::exception_ptr piece_error) {
    if (piece_error != nullptr) {
      const std::lock_guard lock(mutex);
      if (error == nullptr) error = std::move(piece_error);
    }
    left_count.fetch_sub(1);
  }
};

}  // namespace

TensorReader::TensorReader(std::shared_ptr<Runtime> runtime, const std::string& path)
    : runtime_(std::move(runtime)),
      file_(File::open(path, FileMode::read_only, DirectMode::off)),
      header_(read_tensor_header(*file_)) {}

void TensorReader::read(const TensorEntry& entry, void* target) const {
  const auto progress = std::make_shared<Progress>();
  Executor& executor = *runtime_->executor;
  progress->left_count = (entry.size_bytes + kPieceBytes - 1) / kPieceBytes;
  for (int64_t begin = 0; begin < entry.size_bytes; begin += kPieceBytes) {
    const IoRequest request{.file = file_.get(),
                            .kind = IoKind::read,
                            .pointer = static_cast<char*>(target) + begin,
                            .offset = entry.offset_bytes + begin,
                            .bytes = std::min(kPieceBytes, entry.size_bytes - begin)};
    const auto end = [progress, &executor](std::exception_ptr error) {
      progress->end(std::move(error));
      executor.notify();
    };
    try {
      transfer_fully(runtime_->io, request, end);
    } catch (...) {
      progress->end(std::current_exception());
    }
  }
  const auto foreign = outlast(executor, [&] { return progress->left_count.load() == 0; });
  if (progress->error != nullptr) std::rethrow_exception(progress->error);
  if (foreign != nullptr) std::rethrow_exception(foreign);
}

}  // namespace memsys
