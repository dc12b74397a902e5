// See full_io.h.
#include "io/full_io.h"

#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/small_memory.h"
#include "io/system_error.h"

namespace memsys {
namespace {

// Attempts in a row that move nothing, after which a transfer is given up instead of spinning for ever.
constexpr int kStallLimit = 100;

class Transfer : public std::enable_shared_from_this<Transfer> {
 public:
  Transfer(std::shared_ptr<IoEngine> engine, const IoRequest& request, std::function<void(std::exception_ptr)> done)
      : engine_(std::move(engine)), request_(request), done_(std::move(done)) {}

  // The engine picks the descriptor anew for each attempt, so a rest that is no longer aligned goes buffered.
  void attempt() {
    IoRequest rest = request_;
    rest.pointer = static_cast<char*>(request_.pointer) + moved_bytes_;
    rest.offset += moved_bytes_;
    rest.bytes -= moved_bytes_;
    engine_->submit(rest, [self = shared_from_this()](IoAttempt result) { self->take(result); });
  }

 private:
  void take(IoAttempt result) {
    std::exception_ptr failure;
    try {
      if (!is_complete_after(result)) return attempt();
    } catch (...) {
      failure = std::current_exception();
    }
    // Let go first: whoever waits for `done` may drop the engine, and a task must not be the last to hold it.
    engine_.reset();
    std::exchange(done_, nullptr)(failure);
  }

  bool is_complete_after(IoAttempt result) {
    const int64_t rest_bytes = request_.bytes - moved_bytes_;
    const bool may_retry = result.errno_value == EINTR || result.errno_value == EAGAIN;
    if (result.errno_value != 0 && !may_retry) throw failure_of(result.errno_value, "");
    if (result.moved_bytes < 0 || result.moved_bytes > rest_bytes)
      throw failure_of(EIO, "an impossible count came back");
    if (rest_bytes == 0) return !may_retry || is_stalled(result);
    if (result.errno_value == 0 && result.moved_bytes == 0 && request_.kind == IoKind::read) throw end_of_file();
    if (result.errno_value == 0 && result.moved_bytes > 0) {
      stall_count_ = 0;
      moved_bytes_ += result.moved_bytes;
      return moved_bytes_ == request_.bytes;
    }
    return is_stalled(result);
  }

  // Throws at the limit, else counts.
  bool is_stalled(IoAttempt result) {
    if (++stall_count_ < kStallLimit) return false;
    const int errno_value = result.errno_value != 0 ? result.errno_value : EIO;
    throw failure_of(errno_value, "no progress in " + std::to_string(kStallLimit) + " attempts");
  }

  std::string wanted() const {
    return std::string(request_.kind == IoKind::read ? "read" : "write") + " of " + std::to_string(request_.bytes) +
           " bytes at offset " + std::to_string(request_.offset) + " of '" + request_.file->path() + "'";
  }

  SpillError failure_of(int errno_value, const std::string& why) const {
    const std::string detail = why.empty() ? "" : ", " + why;
    return spill_error(errno_value, wanted() + " failed after " + std::to_string(moved_bytes_) + " bytes" + detail,
                       request_.file->descriptor());
  }

  CorruptionError end_of_file() const {
    return CorruptionError(wanted() + " met the end of the file after " + std::to_string(moved_bytes_) +
                           " bytes: it is shorter than what was written to it; something else cut it, or its disk " +
                           "lost data: write it anew");
  }

  std::shared_ptr<IoEngine> engine_;
  const IoRequest request_;
  std::function<void(std::exception_ptr)> done_;
  int64_t moved_bytes_ = 0;
  int stall_count_ = 0;
};

}  // namespace

void transfer_fully(std::shared_ptr<IoEngine> engine, const IoRequest& request,
                    std::function<void(std::exception_ptr)> done) {
  MEMSYS_EXPECT(request.file != nullptr, InputError, "a transfer needs a file");
  MEMSYS_EXPECT(request.pointer != nullptr || request.bytes == 0, InputError, "a transfer needs memory");
  MEMSYS_EXPECT(request.offset >= 0 && request.bytes >= 0, InputError,
                "a transfer of " + std::to_string(request.bytes) + " bytes at offset " +
                    std::to_string(request.offset) + " makes no sense: both must be 0 or more");
  checked_add(request.offset, request.bytes);
  make_small<Transfer>(std::move(engine), request, std::move(done))->attempt();
}

}  // namespace memsys
