// See faulty_io.h.
#include "io/faulty_io.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/bytes.h"

namespace memsys {
namespace {

void flip_bit(void* data, int64_t bytes) {
  if (bytes > 0) static_cast<unsigned char*>(data)[bytes / 2] ^= 0x10;
}

// A page-aligned copy, so that what would have gone past the page cache still does. The caller's bytes stay whole.
std::shared_ptr<void> corrupt_copy(const IoRequest& request) {
  constexpr int64_t kAlignment = 64 * kKiB;  // the largest page in use
  const auto room = static_cast<size_t>(align_up(std::max<int64_t>(request.bytes, 1), kAlignment));
  std::shared_ptr<void> copy(std::aligned_alloc(kAlignment, room), &std::free);
  if (!copy) throw BudgetError("no memory for the copy of a corrupted write of " + format_bytes(request.bytes));
  if (request.bytes > 0) std::memcpy(copy.get(), request.pointer, static_cast<size_t>(request.bytes));
  flip_bit(copy.get(), request.bytes);
  return copy;
}

class FaultyEngine : public FaultyIoEngine {
 public:
  explicit FaultyEngine(std::shared_ptr<IoEngine> inner) : inner_(std::move(inner)) {}

  void arm(const IoFaultPlan& plan) override {
    const std::lock_guard hold(plan_mutex_);
    plan_ = plan;
    counter_.arm(plan.fault == IoFault::none ? -1 : plan.at, plan.span);
  }

  int64_t attempt_count() const override { return counter_.attempt_count(); }

  void submit(const IoRequest& request, std::function<void(IoAttempt)> done) override {
    switch (next_fault(request.kind)) {
      case IoFault::none:
        return inner_->submit(request, std::move(done));
      case IoFault::no_space:
        return answer(request, {0, ENOSPC}, std::move(done));
      case IoFault::io_error:
        return answer(request, {0, EIO}, std::move(done));
      case IoFault::interrupted:
        return answer(request, {0, EINTR}, std::move(done));
      case IoFault::again:
        return answer(request, {0, EAGAIN}, std::move(done));
      case IoFault::truncated:
        return answer(request, {0, 0}, std::move(done));
      case IoFault::short_transfer:
        return submit_half(request, std::move(done));
      case IoFault::corrupt:
        return submit_corrupt(request, std::move(done));
      case IoFault::refused:
        throw SpillError(EAGAIN, "the io engine takes no request: a fault was injected here; disarm it");
    }
  }

  std::string name() const override { return "faulty " + inner_->name(); }

 private:
  IoFault next_fault(IoKind kind) {
    const std::lock_guard hold(plan_mutex_);
    const IoOperation operation = kind == IoKind::read ? IoOperation::read : IoOperation::write;
    if (plan_.operation != IoOperation::any && plan_.operation != operation) return IoFault::none;
    return counter_.next_fails() ? plan_.fault : IoFault::none;
  }

  // An empty transfer takes the place of the real one, so that `done` runs where the inner engine would run it.
  void answer(const IoRequest& request, IoAttempt result, std::function<void(IoAttempt)> done) {
    IoRequest empty = request;
    empty.kind = IoKind::read;
    empty.bytes = 0;
    inner_->submit(empty, [result, done = std::move(done)](IoAttempt) { done(result); });
  }

  void submit_half(const IoRequest& request, std::function<void(IoAttempt)> done) {
    IoRequest half = request;
    half.bytes = request.bytes - request.bytes / 2;
    inner_->submit(half, std::move(done));
  }

  void submit_corrupt(const IoRequest& request, std::function<void(IoAttempt)> done) {
    if (request.kind == IoKind::write) {
      const std::shared_ptr<void> copy = corrupt_copy(request);
      IoRequest altered = request;
      altered.pointer = copy.get();
      return inner_->submit(altered, [copy, done = std::move(done)](IoAttempt result) { done(result); });
    }
    inner_->submit(request, [pointer = request.pointer, done = std::move(done)](IoAttempt result) {
      flip_bit(pointer, result.moved_bytes);
      done(result);
    });
  }

  const std::shared_ptr<IoEngine> inner_;
  std::mutex plan_mutex_;  // guards the plan, and keeps it and the count together
  IoFaultPlan plan_;
  FaultCounter counter_;
};

}  // namespace

std::shared_ptr<FaultyIoEngine> make_faulty_io_engine(std::shared_ptr<IoEngine> inner) {
  return std::make_shared<FaultyEngine>(std::move(inner));
}

}  // namespace memsys
