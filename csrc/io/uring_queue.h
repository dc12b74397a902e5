// The two rings shared with the kernel, by plain system calls: liburing is not on every machine that builds this,
// and the little used here is stable kernel interface. Used by one thread at a time.
#pragma once

#include <linux/io_uring.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "io/descriptor.h"

namespace memsys {

struct UringCompletion {
  uint64_t tag = 0;
  int32_t result = 0;  // moved bytes, or a negative errno
};

class UringQueue {
 public:
  explicit UringQueue(unsigned entry_count);  // throws SpillError
  ~UringQueue();
  UringQueue(const UringQueue&) = delete;
  UringQueue& operator=(const UringQueue&) = delete;

  unsigned capacity() const { return entry_count_; }
  // A cleared entry, next in line for submit(). The caller never prepares more than capacity() at a time.
  io_uring_sqe& prepare();
  unsigned unsubmitted_count() const;
  // Hands over what was prepared and waits for `wait_count` completions; returns 0 or the errno.
  int submit(unsigned wait_count);
  // Takes back the entry prepared last that the kernel has not seen; returns its tag.
  uint64_t take_back();
  bool pop(UringCompletion* completion);

 private:
  Descriptor ring_;
  const pid_t owner_pid_;
  unsigned entry_count_ = 0;
  void* rings_ = nullptr;
  size_t rings_bytes_ = 0;
  io_uring_sqe* entries_ = nullptr;
  size_t entries_bytes_ = 0;
  // Within the mapping; the kernel moves the submission head and the completion tail.
  unsigned *submission_head_ = nullptr, *submission_tail_ = nullptr;
  unsigned *completion_head_ = nullptr, *completion_tail_ = nullptr;
  unsigned submission_mask_ = 0, completion_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
};

}  // namespace memsys
