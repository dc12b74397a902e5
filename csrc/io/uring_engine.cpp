// See uring_engine.h. Only the reaper, a task that lives as long as a burst of requests, touches the ring: requests
// belong to the thread that submits them and would be cancelled with it, and a caller's thread may end at any time.
#include "io/uring_engine.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <mutex>
#include <vector>

#include "io/descriptor.h"
#include "io/system_error.h"
#include "io/uring_queue.h"

namespace memsys {
namespace {

constexpr uint8_t kOperationRead = 22, kOperationWrite = 23;  // IORING_OP_READ, _WRITE: headers before 5.6 lack them
constexpr uint64_t kWakeTag = ~uint64_t{0};
constexpr int64_t kLargestTransfer = 0x7ffff000;  // what the kernel moves at most at once

struct Waiting {
  IoRequest request;
  std::function<void(IoAttempt)> done;
};

// What the engine and its reaper share; the reaper holds it too, so that it may outlive the engine.
class Burst {
 public:
  explicit Burst(int64_t queue_depth)
      : ring_(static_cast<unsigned>(queue_depth) + 1),  // one entry is the wake-up's
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        slots_(std::min(static_cast<size_t>(queue_depth), static_cast<size_t>(ring_.capacity() - 1))) {
    if (!wake_.is_open()) throw spill_error(errno, "cannot make the io_uring engine's wake-up", -1);
    for (size_t index = slots_.size(); index-- > 0;) free_slots_.push_back(index);
  }

  // `start` posts the reaper; it is called only when none is at work.
  void add(Waiting waiting, const std::function<void()>& start) {
    bool is_asleep = false;
    {
      const std::lock_guard hold(inbox_mutex_);
      inbox_.push_back(std::move(waiting));
      if (!is_reaping_) {
        try {
          start();
        } catch (...) {
          inbox_.pop_back();
          throw;
        }
        is_reaping_ = true;
      }
      is_asleep = is_asleep_;
      is_asleep_ = false;
    }
    if (is_asleep) wake();
  }

  // The reaper: returns once nothing is in flight, so that an idle engine takes no time and the executor drains.
  void reap() {
    while (fill()) {
      arm_wake();
      const int error = ring_.submit(1);
      if (deliver() > 0 || error == 0 || error == EINTR) continue;
      if (ring_.unsubmitted_count() == 0) throw spill_error(error, "waiting for io_uring failed", -1);
      refuse_unsubmitted(error);
    }
  }

 private:
  void wake() {
    const uint64_t one = 1;
    // It can fail only where the count is at its limit already, and then the reaper is being woken.
    static_cast<void>(!::write(wake_.get(), &one, sizeof one));
  }

  // Moves requests from the inbox to the ring; false, and the burst is over, if there is nothing to wait for.
  bool fill() {
    const std::lock_guard hold(inbox_mutex_);
    while (!inbox_.empty() && !free_slots_.empty()) {
      prepare(std::move(inbox_.front()));
      inbox_.pop_front();
    }
    is_reaping_ = free_slots_.size() < slots_.size();
    // With every slot taken a completion comes first in any case, and no wake-up is needed.
    is_asleep_ = is_reaping_ && !free_slots_.empty();
    return is_reaping_;
  }

  void prepare(Waiting waiting) {
    const size_t slot = free_slots_.back();
    free_slots_.pop_back();
    const IoRequest& request = waiting.request;
    io_uring_sqe& entry = ring_.prepare();
    entry.opcode = request.kind == IoKind::read ? kOperationRead : kOperationWrite;
    entry.fd = request.file->descriptor_for(request.pointer, request.offset, request.bytes);
    entry.addr = reinterpret_cast<uint64_t>(request.pointer);
    entry.off = static_cast<uint64_t>(request.offset);
    entry.len = static_cast<uint32_t>(std::min(request.bytes, kLargestTransfer));
    entry.user_data = slot;
    slots_[slot] = std::move(waiting.done);
  }

  void arm_wake() {
    if (is_wake_armed_) return;
    io_uring_sqe& entry = ring_.prepare();
    entry.opcode = IORING_OP_POLL_ADD;
    entry.fd = wake_.get();
    entry.poll_events = POLLIN;
    entry.user_data = kWakeTag;
    is_wake_armed_ = true;
  }

  int64_t deliver() {
    int64_t count = 0;
    for (UringCompletion completion; ring_.pop(&completion); ++count)
      finish(completion.tag,
             completion.result < 0 ? IoAttempt{0, -completion.result} : IoAttempt{completion.result, 0});
    return count;
  }

  // The kernel takes no more (out of memory, say): an errno for those it has not seen, to be retried or reported above.
  void refuse_unsubmitted(int error) {
    std::vector<uint64_t> tags;
    while (ring_.unsubmitted_count() > 0) tags.push_back(ring_.take_back());
    for (const uint64_t tag : tags) finish(tag, {0, error});
  }

  void finish(uint64_t tag, IoAttempt result) {
    if (tag == kWakeTag) {
      uint64_t count = 0;
      static_cast<void>(!::read(wake_.get(), &count, sizeof count));  // only to clear it
      is_wake_armed_ = false;
      return;
    }
    const auto done = std::exchange(slots_[tag], nullptr);
    free_slots_.push_back(tag);
    done(result);
  }

  // The reaper's own.
  UringQueue ring_;
  const Descriptor wake_;
  bool is_wake_armed_ = false;
  std::vector<std::function<void(IoAttempt)>> slots_;
  std::vector<size_t> free_slots_;

  std::mutex inbox_mutex_;  // guards the three below
  std::deque<Waiting> inbox_;
  bool is_reaping_ = false;
  bool is_asleep_ = false;  // the reaper waits, or is about to, and has room for more
};

class UringEngine : public IoEngine {
 public:
  UringEngine(std::shared_ptr<Executor> executor, int64_t queue_depth)
      : executor_(std::move(executor)),
        burst_(std::make_shared<Burst>(queue_depth)),
        queue_(executor_->create_queue("memsys-uring")),
        owner_pid_(::getpid()) {}
  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;

  ~UringEngine() override {
    try {
      executor_->destroy_queue(queue_);  // waits for the reaper, which waits for what is in flight
    } catch (const Error&) {
      // Inside a task, which can't wait for itself, or in a forked child, which has no threads to wait for. The
      // queue then ends with its executor.
    }
  }

  void submit(const IoRequest& request, std::function<void(IoAttempt)> done) override {
    MEMSYS_EXPECT(::getpid() == owner_pid_, Error,
                  "the io_uring engine did not survive fork(): start worker processes with the 'spawn' method, or "
                  "call memsys afresh in the child");
    burst_->add({request, std::move(done)}, [this] { executor_->post(queue_, [burst = burst_] { burst->reap(); }); });
  }

  std::string name() const override { return "uring"; }

 private:
  const std::shared_ptr<Executor> executor_;
  const std::shared_ptr<Burst> burst_;
  const QueueId queue_;
  const pid_t owner_pid_;
};

}  // namespace

std::shared_ptr<IoEngine> make_uring_engine(std::shared_ptr<Executor> executor, int64_t queue_depth) {
  return std::make_shared<UringEngine>(std::move(executor), queue_depth);
}

}  // namespace memsys
