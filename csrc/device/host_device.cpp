// The CPU as a device, in production. Stream 0 is synchronous, as torch's CPU operations are; a created stream is a
// queue of the executor, so that lanes run beside it. Events are flags that a task sets.
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

#include "base/error.h"
#include "base/small_memory.h"
#include "device/device.h"
#include "device/host_memory.h"

namespace memsys {
namespace {

// One record of an event. Whoever waits holds the record it saw, so that recording again, or destroying the event,
// changes nothing for it.
using Completion = std::shared_ptr<std::atomic<bool>>;

Completion make_completion(bool done) { return make_small<std::atomic<bool>>(done); }

Gate gate_of(const Completion& completion) {
  return {small_function([completion] { return completion->load(std::memory_order_acquire); }), {}};
}

class HostDevice final : public Device {
 public:
  explicit HostDevice(std::shared_ptr<Executor> executor) : executor_(std::move(executor)) {
    capabilities_.kind = DeviceKind::host;
    capabilities_.name = "CPU";
    capabilities_.host_addressable = true;
    capabilities_.needs_pinning = false;
  }
  HostDevice(const HostDevice&) = delete;
  HostDevice& operator=(const HostDevice&) = delete;

  ~HostDevice() override {
    for (const auto& [stream, queue] : streams_) end_queue(queue);
  }

  const Capabilities& capabilities() const override { return capabilities_; }

  void* allocate(int64_t bytes, StreamView) override { return allocate_host_block(bytes); }

  void free(void* pointer, int64_t, StreamView stream) noexcept override {
    try {
      issue(stream, [pointer] { free_host_block(pointer); });
    } catch (const Error&) {
      // A stream destroyed before its blocks has finished its work: nothing reads them any more.
      free_host_block(pointer);
    }
  }

  void register_host(void*, int64_t) override {}
  void unregister_host(void*) noexcept override {}

  StreamView create_stream(const std::string& name) override {
    const QueueId queue = executor_->create_queue(name);
    const std::lock_guard lock(mutex_);
    const StreamView stream{next_id_++};
    streams_[stream.value] = queue;
    return stream;
  }

  void destroy_stream(StreamView stream) noexcept override {
    std::unique_lock lock(mutex_);
    const auto found = streams_.find(stream.value);
    if (found == streams_.end()) return;
    const QueueId queue = found->second;
    streams_.erase(found);
    lock.unlock();
    end_queue(queue);
  }

  EventId create_event() override {
    const std::lock_guard lock(mutex_);
    const EventId event{next_id_++};
    events_[event.value] = make_completion(true);
    return event;
  }

  void destroy_event(EventId event) noexcept override {
    const std::lock_guard lock(mutex_);
    events_.erase(event.value);
  }

  void record(EventId event, StreamView stream) override {
    const Completion completion = make_completion(false);
    {
      const std::lock_guard lock(mutex_);
      find_event_locked(event) = completion;
    }
    issue(stream, [completion, executor = executor_.get()] {
      completion->store(true, std::memory_order_release);
      executor->notify();
    });
  }

  void wait(StreamView stream, EventId event) override {
    const Completion completion = completion_of(event);
    if (completion->load(std::memory_order_acquire)) return;
    if (stream == StreamView{})
      executor_->wait_until(gate_of(completion).ready);
    else
      executor_->post(
          queue_of(stream), [] {}, gate_of(completion));
  }

  bool query(EventId event) override { return completion_of(event)->load(std::memory_order_acquire); }

  void synchronize(EventId event) override {
    const Completion completion = completion_of(event);
    if (!completion->load(std::memory_order_acquire)) executor_->wait_until(gate_of(completion).ready);
  }

  Gate gate(EventId event) override { return gate_of(completion_of(event)); }

  void copy(void* target, const void* source, int64_t bytes, StreamView stream) override {
    expect_count(bytes);
    if (bytes > 0) issue(stream, [=] { std::memcpy(target, source, static_cast<size_t>(bytes)); });
  }

  void fill(void* target, unsigned char value, int64_t bytes, StreamView stream) override {
    expect_count(bytes);
    if (bytes > 0) issue(stream, [=] { std::memset(target, value, static_cast<size_t>(bytes)); });
  }

  void note_use(const void*, int64_t, StreamView, Use) override {}
  void note_free(const void*, int64_t, StreamView) override {}
  void note_user(const void*, StreamView) override {}

 private:
  template <typename Work>
  void issue(StreamView stream, Work work) {
    if (stream == StreamView{})
      work();
    else
      executor_->post(queue_of(stream), std::move(work));
  }

  void end_queue(QueueId queue) noexcept {
    try {
      executor_->destroy_queue(queue);
    } catch (const std::exception&) {
      // A forked child has no threads to end, and a seeded queue that cannot finish was reported by the waits.
    }
  }

  static void expect_count(int64_t bytes) {
    MEMSYS_EXPECT(bytes >= 0, InputError, "cannot move " + std::to_string(bytes) + " bytes: give a count >= 0");
  }

  QueueId queue_of(StreamView stream) {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(stream.value);
    MEMSYS_EXPECT(found != streams_.end(), InputError,
                  "the CPU has no stream " + std::to_string(stream.value) + ": use 0 or one from create_stream()");
    return found->second;
  }

  Completion& find_event_locked(EventId event) {
    const auto found = events_.find(event.value);
    MEMSYS_EXPECT(found != events_.end(), InputError,
                  "the CPU has no event " + std::to_string(event.value) + ": it was destroyed or never created");
    return found->second;
  }

  Completion completion_of(EventId event) {
    const std::lock_guard lock(mutex_);
    return find_event_locked(event);
  }

  const std::shared_ptr<Executor> executor_;
  Capabilities capabilities_;
  std::mutex mutex_;
  std::map<uintptr_t, QueueId> streams_;
  std::map<uintptr_t, Completion> events_;
  uintptr_t next_id_ = 1;
};

}  // namespace

std::shared_ptr<Device> make_host_device(std::shared_ptr<Executor> executor) {
  return std::make_shared<HostDevice>(std::move(executor));
}

}  // namespace memsys
