// See resources.h: host memory that the device copies from and to on its own. Mapping, touching in parallel and then
// registering beats the driver's own allocation, which touches page by page under a lock of the whole driver and, in
// most allocators above it, rounds up to a power of two.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/outlast.h"
#include "memory/pages.h"
#include "memory/resources.h"

namespace memsys {
namespace {

std::string memlock_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  if (limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return format_bytes(static_cast<int64_t>(limit.rlim_cur));
}

// What the queues share while they touch one mapping.
struct TouchProgress {
  std::atomic<int64_t> left_count{0};
  std::mutex mutex;
  std::exception_ptr error;
};

class PinnedResource final : public MemoryResource {
 public:
  PinnedResource(std::shared_ptr<Device> device, std::shared_ptr<Executor> executor, int64_t touch_thread_count)
      : device_(std::move(device)), executor_(std::move(executor)) {
    if (executor_ == nullptr) return;
    for (int64_t index = 0; index < touch_thread_count; ++index)
      queues_.push_back(executor_->create_queue("touch " + std::to_string(index)));
  }
  ~PinnedResource() override {
    for (const QueueId queue : queues_) executor_->destroy_queue(queue);
  }

  void* allocate(int64_t bytes) override {
    void* pointer = map_pages(bytes, tier());
    try {
      touch(static_cast<char*>(pointer), bytes);
      if (needs_pinning()) register_pages(pointer, bytes);
    } catch (...) {
      unmap_pages(pointer, bytes);
      throw;
    }
    return pointer;
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override {
    if (needs_pinning()) device_->unregister_host(pointer);
    unmap_pages(pointer, bytes);
  }
  Tier tier() const override { return needs_pinning() ? Tier::pinned : Tier::pageable; }

 private:
  bool needs_pinning() const { return device_->capabilities().needs_pinning; }

  void register_pages(void* pointer, int64_t bytes) {
    try {
      device_->register_host(pointer, align_up(bytes, page_bytes()));
    } catch (const Error& error) {
      throw BudgetError("pinned memory: the device refused to register " + format_bytes(bytes) + " (" + error.what() +
                        "); wanted " + format_bytes(bytes) +
                        " beyond what is locked already, found RLIMIT_MEMLOCK at " + memlock_limit() +
                        "; raise it (ulimit -l unlimited) or lower host_budget");
    }
  }

  void touch(char* pointer, int64_t bytes) {
    const auto piece_count = static_cast<int64_t>(queues_.size());
    if (piece_count == 0 || bytes < 2 * kHugePageBytes) return touch_pages(pointer, bytes, tier());
    const int64_t piece_bytes = align_up((bytes + piece_count - 1) / piece_count, kHugePageBytes);
    const auto progress = std::make_shared<TouchProgress>();
    progress->left_count = (bytes + piece_bytes - 1) / piece_bytes;
    for (int64_t offset = 0, index = 0; offset < bytes; offset += piece_bytes, ++index)
      post_piece(queues_[static_cast<size_t>(index)], progress, pointer + offset,
                 std::min(piece_bytes, bytes - offset));
    wait_for_pieces(*progress);
    if (progress->error != nullptr) std::rethrow_exception(progress->error);
  }

  void post_piece(QueueId queue, const std::shared_ptr<TouchProgress>& progress, char* pointer, int64_t bytes) {
    executor_->post(queue, [progress, pointer, bytes, tier = tier(), executor = executor_.get()] {
      try {
        touch_pages(pointer, bytes, tier);
      } catch (...) {
        const std::lock_guard lock(progress->mutex);
        progress->error = std::current_exception();
      }
      progress->left_count.fetch_sub(1);
      executor->notify();
    });
  }

  void wait_for_pieces(TouchProgress& progress) {
    const auto foreign = outlast(*executor_, [&progress] { return progress.left_count.load() == 0; });
    if (foreign != nullptr) std::rethrow_exception(foreign);
  }

  const std::shared_ptr<Device> device_;
  const std::shared_ptr<Executor> executor_;
  std::vector<QueueId> queues_;
};

}  // namespace

std::shared_ptr<MemoryResource> make_pinned_resource(std::shared_ptr<Device> device, std::shared_ptr<Executor> executor,
                                                     int64_t touch_thread_count) {
  MEMSYS_EXPECT(device != nullptr, InputError, "pinned memory: no device given");
  MEMSYS_EXPECT(touch_thread_count >= 0, InputError,
                "pinned memory: touch_thread_count is " + std::to_string(touch_thread_count) + "; give 0 or more");
  return std::make_shared<PinnedResource>(std::move(device), std::move(executor), touch_thread_count);
}

}  // namespace memsys
