// A transfer under way. It ends once: complete, or failed with the error that its owner will see.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <utility>

#include "base/executor.h"

namespace memsys {

class Ticket {
 public:
  bool is_done() const { return done_.load(std::memory_order_acquire); }
  // Only once is_done().
  std::exception_ptr error() const { return error_; }

  // By the task that ends the transfer, once; the caller notifies the executor.
  void finish(std::exception_ptr error = nullptr) {
    error_ = std::move(error);
    done_.store(true, std::memory_order_release);
  }
  // Blocks (the GIL released) and throws the transfer's error.
  void wait(Executor& executor) const {
    if (!is_done()) executor.wait_until([this] { return is_done(); });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::exception_ptr error_;
  std::atomic<bool> done_{false};
};

}  // namespace memsys
