// A simulated accelerator over CPU memory, for proving stream protocols without a GPU. It keeps a vector clock for
// the host and every stream, and checks each access when it is issued, in program order: a missing edge is an
// OrderError even on a schedule where the data happened to be right. The data move later, when the executor runs
// the stream's task, in the seed's order: so a protocol error that the clocks cannot see shows as wrong bytes.
//
//  - Stream 0, and any stream whose name begins with "compute", is a stream of torch operations: these run at once
//    on the CPU and are announced by note_use(). wait() on such a stream therefore runs the executor until the
//    event is complete. Its own events complete later, in the seed's order: the host runs ahead of the compute.
//  - Any other stream is a lane: copies and fills are tasks. note_use() on it checks the order and waits for nothing.
//  - synchronize(), a query() that says yes and a gate that opened tell the host what the event knows; all work
//    issued later, on any stream, comes after what the host knows. All host threads are one actor, and so are the
//    executor's tasks: a missing edge between two of them is not seen.
//  - Device memory comes from a pool ordered on streams, with poisoning (stream_pool.h). The rules of access are
//    those of block_history.h.
//  - A violation inside a call that may not throw (free) is thrown by the next call that may, and printed if there
//    is none.
#pragma once

#include <atomic>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "device/block_history.h"
#include "device/device.h"
#include "device/stream_pool.h"
#include "device/vector_clock.h"

namespace memsys {

class SimulatedDevice final : public Device {
 public:
  explicit SimulatedDevice(std::shared_ptr<Executor> executor);
  ~SimulatedDevice() override;
  SimulatedDevice(const SimulatedDevice&) = delete;
  SimulatedDevice& operator=(const SimulatedDevice&) = delete;

  const Capabilities& capabilities() const override { return capabilities_; }
  void* allocate(int64_t bytes, StreamView stream) override;
  void free(void* pointer, int64_t bytes, StreamView stream) noexcept override;
  void register_host(void* pointer, int64_t bytes) override;
  void unregister_host(void* pointer) noexcept override;
  StreamView create_stream(const std::string& name) override;
  void destroy_stream(StreamView stream) noexcept override;
  EventId create_event() override;
  void destroy_event(EventId event) noexcept override;
  void record(EventId event, StreamView stream) override;
  void wait(StreamView stream, EventId event) override;
  bool query(EventId event) override;
  void synchronize(EventId event) override;
  Gate gate(EventId event) override;
  void copy(void* target, const void* source, int64_t bytes, StreamView stream) override;
  void fill(void* target, unsigned char value, int64_t bytes, StreamView stream) override;
  void note_use(const void* pointer, int64_t bytes, StreamView stream, Use use) override;
  void note_free(const void* pointer, int64_t bytes, StreamView stream) override;
  void note_user(const void* pointer, StreamView stream) override;

 private:
  enum class Mode { compute, lane };
  struct Stream {
    int actor = 0;
    QueueId queue = 0;
    Mode mode = Mode::lane;
  };
  // One record of an event: what its stream knew, and whether the stream has come so far.
  struct Record {
    VectorClock clock;
    std::atomic<bool> done{false};
  };
  // A freed block that other streams were still using, until they have come as far as at its free.
  struct Lingering {
    void* pointer = nullptr;
    int64_t bytes = 0;
    StreamView owner;
    std::vector<std::shared_ptr<Record>> users;
  };
  // What gates hold too, as they may outlive the device.
  struct Knowledge {
    std::mutex mutex;
    std::vector<VectorClock> clocks;  // by actor
  };

  Stream make_stream_locked(const std::string& name, Mode mode);
  const Stream& find_stream_locked(StreamView stream) const;
  std::shared_ptr<Record>& find_event_locked(EventId event);
  std::shared_ptr<Record> record_of(EventId event);
  int actor_of_locked(StreamView stream) const;
  Operation begin_locked(int actor, const char* name);
  std::shared_ptr<Record> record_locked(const Stream& stream);
  void give_back_locked(void* pointer, int64_t bytes, StreamView stream);
  void linger_or_give_back_locked(void* pointer, int64_t bytes, StreamView stream);
  void reclaim_locked();
  void raise_kept_locked();
  void learn(const Record& record);
  template <typename Work>
  void issue_locked(const Stream& stream, Work work);
  void end_queue(QueueId queue) noexcept;

  const std::shared_ptr<Executor> executor_;
  const std::shared_ptr<Knowledge> knowledge_;
  Capabilities capabilities_;
  std::vector<std::string> names_;  // by actor
  std::map<uintptr_t, Stream> streams_;
  std::map<uintptr_t, std::shared_ptr<Record>> events_;
  std::map<uintptr_t, int64_t> registered_;
  BlockHistory history_;
  StreamPool pool_;
  std::map<const void*, std::set<uintptr_t>> users_;  // of blocks handed out, the streams beside their own
  std::vector<Lingering> lingering_;
  std::exception_ptr kept_;  // a violation that waits for a call that may throw
  uintptr_t next_id_ = 1;
};

}  // namespace memsys
