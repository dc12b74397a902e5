// See uring_queue.h.
#include "io/uring_queue.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "io/io_engine.h"
#include "io/system_error.h"

namespace memsys {
namespace {

// Named here because headers older than Linux 5.6 lack some of them; the kernel may be newer than the headers.
constexpr unsigned kFeatureSingleMapping = 1U << 0, kFeatureNoDrop = 1U << 1, kFeaturePlainReadWrite = 1U << 3;
constexpr unsigned kNeededFeatures = kFeatureSingleMapping | kFeatureNoDrop | kFeaturePlainReadWrite;
constexpr unsigned kSetupClamp = 1U << 4;

unsigned load_shared(unsigned* word) { return std::atomic_ref(*word).load(std::memory_order_acquire); }
void store_shared(unsigned* word, unsigned value) { std::atomic_ref(*word).store(value, std::memory_order_release); }

unsigned* word_at(void* base, unsigned offset) {
  return reinterpret_cast<unsigned*>(static_cast<char*>(base) + offset);
}

void* map_ring(int ring, size_t bytes, off_t what) {
  void* mapping = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
  if (mapping == MAP_FAILED) throw spill_error(errno, "cannot map the io_uring ring", -1);
  // A forked child must not write to its parent's ring.
  ::madvise(mapping, bytes, MADV_DONTFORK);
  return mapping;
}

std::string explain(int errno_value) {
  const std::string text = describe_errno(errno_value);
  if (errno_value == EPERM || errno_value == EACCES)
    return text + ": denied by kernel.io_uring_disabled or by the container's seccomp filter";
  if (errno_value == ENOSYS) return text + ": the kernel is older than 5.1 or built without it";
  if (errno_value == ENOMEM) return text + ": the limit of locked memory is too low (ulimit -l)";
  return text;
}

}  // namespace

UringQueue::UringQueue(unsigned entry_count) : owner_pid_(::getpid()) {
  io_uring_params params = {};
  params.flags = kSetupClamp;
  ring_ = Descriptor(static_cast<int>(::syscall(SYS_io_uring_setup, entry_count, &params)));
  if (!ring_.is_open()) {
    const int error = errno;
    throw SpillError(error, "cannot set up io_uring: " + explain(error));
  }
  if ((params.features & kNeededFeatures) != kNeededFeatures)
    throw SpillError(ENOSYS, "the kernel's io_uring is older than 5.6, which lacks plain reads and writes");
  entry_count_ = params.sq_entries;
  rings_bytes_ = std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                                  params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
  entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  rings_ = map_ring(ring_.get(), rings_bytes_, static_cast<off_t>(IORING_OFF_SQ_RING));
  try {
    entries_ = static_cast<io_uring_sqe*>(map_ring(ring_.get(), entries_bytes_, static_cast<off_t>(IORING_OFF_SQES)));
  } catch (...) {
    ::munmap(rings_, rings_bytes_);
    throw;
  }
  submission_head_ = word_at(rings_, params.sq_off.head);
  submission_tail_ = word_at(rings_, params.sq_off.tail);
  submission_mask_ = *word_at(rings_, params.sq_off.ring_mask);
  completion_head_ = word_at(rings_, params.cq_off.head);
  completion_tail_ = word_at(rings_, params.cq_off.tail);
  completion_mask_ = *word_at(rings_, params.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(static_cast<char*>(rings_) + params.cq_off.cqes);
  // The indirection array stays the identity: entries are used in the order of their places.
  unsigned* const places = word_at(rings_, params.sq_off.array);
  for (unsigned index = 0; index < entry_count_; ++index) places[index] = index;
}

UringQueue::~UringQueue() {
  // A forked child never had these mappings; its own memory may lie at their addresses by now.
  if (::getpid() != owner_pid_) return;
  ::munmap(entries_, entries_bytes_);
  ::munmap(rings_, rings_bytes_);
}

io_uring_sqe& UringQueue::prepare() {
  const unsigned tail = *submission_tail_;
  io_uring_sqe& entry = entries_[tail & submission_mask_];
  std::memset(&entry, 0, sizeof entry);
  // The kernel looks at the tail only in submit(), so the caller may fill the entry after this.
  store_shared(submission_tail_, tail + 1);
  return entry;
}

unsigned UringQueue::unsubmitted_count() const { return *submission_tail_ - load_shared(submission_head_); }

int UringQueue::submit(unsigned wait_count) {
  const unsigned flags = wait_count > 0 ? IORING_ENTER_GETEVENTS : 0;
  const long result =
      ::syscall(SYS_io_uring_enter, ring_.get(), unsubmitted_count(), wait_count, flags, nullptr, size_t{0});
  return result < 0 ? errno : 0;
}

uint64_t UringQueue::take_back() {
  const unsigned tail = *submission_tail_ - 1;
  store_shared(submission_tail_, tail);
  return entries_[tail & submission_mask_].user_data;
}

bool UringQueue::pop(UringCompletion* completion) {
  const unsigned head = *completion_head_;
  if (head == load_shared(completion_tail_)) return false;
  const io_uring_cqe& entry = completions_[head & completion_mask_];
  *completion = {entry.user_data, entry.res};
  store_shared(completion_head_, head + 1);
  return true;
}

bool probe_uring(std::string* reason) {
  static const std::string refusal = []() -> std::string {
    try {
      UringQueue queue(4);
      queue.prepare().opcode = IORING_OP_NOP;
      const int error = queue.submit(1);
      UringCompletion completion;
      if (error != 0) return "io_uring refuses to submit: " + explain(error);
      if (!queue.pop(&completion) || completion.result != 0) return "io_uring did not complete an empty request";
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }();
  if (reason != nullptr) *reason = refusal;
  return refusal.empty();
}

}  // namespace memsys
