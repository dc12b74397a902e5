// What the io tests share: memory at a chosen alignment, a folder that vanishes, the wait for a transfer, and the
// list of engines that every contract test runs over.
#pragma once

#include <dirent.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/executor.h"
#include "csrc/check.h"
#include "io/faulty_io.h"
#include "io/file.h"
#include "io/full_io.h"
#include "io/io_engine.h"

namespace io_test {

using namespace memsys;

// Room for `bytes` that starts `shift` bytes past a 64 KiB boundary.
class Block {
 public:
  explicit Block(int64_t bytes, int64_t shift = 0)
      : shift_(shift),
        memory_(std::aligned_alloc(65536, static_cast<size_t>((bytes + shift) / 65536 + 1) * 65536), std::free) {
    std::memset(data(), 0, static_cast<size_t>(bytes));
  }
  unsigned char* data() const { return static_cast<unsigned char*>(memory_.get()) + shift_; }
  // A pattern that differs at every offset and for every seed.
  void fill(int64_t bytes, uint64_t seed) const {
    uint64_t state = seed * 0x9e3779b97f4a7c15U + 1;
    for (int64_t index = 0; index < bytes; ++index) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      data()[index] = static_cast<unsigned char>(state >> 56);
    }
  }

 private:
  int64_t shift_;
  std::shared_ptr<void> memory_;
};

inline bool is_same(const Block& left, const Block& right, int64_t bytes) {
  return std::memcmp(left.data(), right.data(), static_cast<size_t>(bytes)) == 0;
}

class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "memsys-io-test-XXXXXX";
    CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline int64_t open_descriptor_count() {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count += entry.exists() || true;
  return count;
}

// Runs one transfer to its end and throws what it ended with.
inline void transfer(Executor& executor, const std::shared_ptr<IoEngine>& engine, const IoRequest& request) {
  std::atomic<bool> is_done{false};
  std::exception_ptr failure;
  transfer_fully(engine, request, [&](std::exception_ptr error) {
    failure = error;
    is_done = true;
    executor.notify();
  });
  executor.wait_until([&] { return is_done.load(); });
  // notify() comes after is_done: until the task has ended it may still use what lies on this stack.
  executor.drain();
  if (failure) std::rethrow_exception(failure);
}

struct Engine {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<IoEngine> engine;
};

inline Engine make_engine(IoEngineChoice choice, int64_t queue_depth = 8) {
  std::shared_ptr<Executor> executor = make_threaded_executor();
  return {executor, make_io_engine(executor, {.choice = choice, .thread_count = 4, .queue_depth = queue_depth})};
}

// Both engines, or the one left where io_uring is denied (test_uring_works_here then skips with the reason).
inline std::vector<Engine> all_engines() {
  std::vector<Engine> engines{make_engine(IoEngineChoice::threads)};
  if (probe_uring(nullptr)) engines.push_back(make_engine(IoEngineChoice::uring));
  return engines;
}

}  // namespace io_test
