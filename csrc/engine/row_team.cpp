// See row_team.h.
#include "engine/row_team.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "base/error.h"
#include "base/outlast.h"

namespace memsys {
namespace {

// A helper's last piece takes microseconds; sleeping and waking takes longer than looking a few thousand times.
constexpr int kLookCount = 4000;

// One loop under way. A helper that comes after the last piece was taken never looks at `body`, which may be gone.
struct Loop {
  std::atomic<int64_t> next{0}, done_count{0};
  int64_t piece_count = 0;
  const std::function<void(int64_t)>* body = nullptr;

  void work() {
    for (int64_t piece = next.fetch_add(1); piece < piece_count; piece = next.fetch_add(1)) {
      (*body)(piece);
      done_count.fetch_add(1);
    }
  }
  bool is_done() const { return done_count.load() == piece_count; }
};

#if defined(__x86_64__)
void relax() { __builtin_ia32_pause(); }
#else
void relax() {}
#endif

}  // namespace

RowTeam::RowTeam(std::shared_ptr<Executor> executor, int64_t helper_count, ForeignPool pool)
    : executor_(std::move(executor)), pool_(pool) {
  MEMSYS_EXPECT(helper_count >= 0, InputError,
                "a team of " + std::to_string(helper_count) + " helpers was asked for; give 0 or more");
  for (int64_t index = 0; index < helper_count && pool == nullptr; ++index)
    queues_.push_back(executor_->create_queue("gather " + std::to_string(index)));
}

RowTeam::~RowTeam() {
  for (const QueueId queue : queues_) try {
      executor_->destroy_queue(queue);
    } catch (const std::exception&) {
      // A forked child has no threads to end.
    }
}

void RowTeam::run(int64_t piece_count, int64_t thread_count, const std::function<void(int64_t)>& body) {
  const int64_t most_helpers = pool_ == nullptr ? static_cast<int64_t>(queues_.size()) : thread_count;
  const int64_t helper_count = std::min({thread_count - 1, piece_count - 1, most_helpers});
  if (helper_count <= 0) {
    for (int64_t piece = 0; piece < piece_count; ++piece) body(piece);
    return;
  }
  const auto loop = std::make_shared<Loop>();
  loop->piece_count = piece_count;
  loop->body = &body;
  if (pool_ != nullptr) {
    const auto work = [](void* data) { static_cast<Loop*>(data)->work(); };
    return pool_(work, loop.get(), static_cast<unsigned>(helper_count + 1), 0);
  }
  // A helper whose thread can't start is done without: those posted before it look at `body`, so nothing may leave
  // here.
  for (int64_t index = 0; index < helper_count; ++index) try {
      executor_->post(queues_[static_cast<size_t>(index)], [loop, executor = executor_.get()] {
        loop->work();
        if (loop->is_done()) executor->notify();
      });
    } catch (const std::exception&) {
      break;
    }
  loop->work();
  for (int look = 0; look < kLookCount && !loop->is_done(); ++look) relax();
  const auto foreign = outlast(*executor_, [&] { return loop->is_done(); });
  if (foreign != nullptr) std::rethrow_exception(foreign);
}

}  // namespace memsys
