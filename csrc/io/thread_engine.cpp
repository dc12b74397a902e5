// See thread_engine.h.
#include "io/thread_engine.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <vector>

#include "base/error.h"

namespace memsys {
namespace {

IoAttempt attempt(const IoRequest& request) {
  const int descriptor = request.file->descriptor_for(request.pointer, request.offset, request.bytes);
  const auto bytes = static_cast<size_t>(request.bytes);
  const ssize_t moved = request.kind == IoKind::read ? ::pread(descriptor, request.pointer, bytes, request.offset)
                                                     : ::pwrite(descriptor, request.pointer, bytes, request.offset);
  if (moved < 0) return {0, errno};
  return {moved, 0};
}

struct Lane {
  QueueId queue = -1;
  std::atomic<int> load{0};  // only a hint where to go: a race costs balance, not correctness
};

class ThreadEngine : public IoEngine {
 public:
  ThreadEngine(std::shared_ptr<Executor> executor, int64_t thread_count)
      : executor_(std::move(executor)), lanes_(static_cast<size_t>(thread_count)) {
    for (size_t index = 0; index < lanes_.size(); ++index) {
      lanes_[index] = std::make_shared<Lane>();
      lanes_[index]->queue = executor_->create_queue("memsys-io-" + std::to_string(index));
    }
  }
  ThreadEngine(const ThreadEngine&) = delete;
  ThreadEngine& operator=(const ThreadEngine&) = delete;

  ~ThreadEngine() override {
    for (const auto& lane : lanes_) {
      try {
        executor_->destroy_queue(lane->queue);  // runs what the queue still holds
      } catch (const Error&) {
        // Inside a task, which can't wait for itself, or in a forked child, which has no threads to wait for. The
        // queue then ends with its executor, and finishes first: its tasks hold their lane.
      }
    }
  }

  void submit(const IoRequest& request, std::function<void(IoAttempt)> done) override {
    const std::shared_ptr<Lane> lane = least_loaded();
    executor_->post(lane->queue, [lane, request, done = std::move(done)] {
      const IoAttempt result = attempt(request);
      lane->load.fetch_sub(1, std::memory_order_relaxed);
      done(result);
    });
    lane->load.fetch_add(1, std::memory_order_relaxed);
  }

  std::string name() const override { return "threads"; }

 private:
  // Starts looking at the next lane each time, so that equal loads take turns.
  std::shared_ptr<Lane> least_loaded() {
    const size_t first = next_.fetch_add(1, std::memory_order_relaxed);
    std::shared_ptr<Lane> best = lanes_[first % lanes_.size()];
    for (size_t step = 1; step < lanes_.size(); ++step) {
      const std::shared_ptr<Lane>& candidate = lanes_[(first + step) % lanes_.size()];
      if (candidate->load.load(std::memory_order_relaxed) < best->load.load(std::memory_order_relaxed))
        best = candidate;
    }
    return best;
  }

  const std::shared_ptr<Executor> executor_;
  std::vector<std::shared_ptr<Lane>> lanes_;
  std::atomic<size_t> next_{0};
};

}  // namespace

std::shared_ptr<IoEngine> make_thread_engine(std::shared_ptr<Executor> executor, int64_t thread_count) {
  return std::make_shared<ThreadEngine>(std::move(executor), thread_count);
}

}  // namespace memsys
