// Serves one device's requests, those of a planned step at the addresses that a plan gave them: one slab, taken once,
// without search, split or merge. A request belongs to the plan by its stream, its position in the step and its bytes.
// The first that differs sends the rest of its step to a pool that knows no future, as does everything outside of a
// step and on other streams: right, but with that pool's fragmentation.
//
//  - Live blocks never overlap, whatever the caller does: a planned place that is still in use is not handed out, and
//    that one request goes to the pool.
//  - A freed block is reused by later work of its own stream at once. Other streams that used it (record_stream) are
//    waited for: by the stream that gets the place, or, in the pool, by the block itself before it is free.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/device.h"
#include "memory/arena.h"

namespace memsys {

struct PlannedRequest {
  int64_t bytes = 0, offset = 0;
};

struct SlabPlan {
  std::vector<PlannedRequest> requests;  // of the planned stream, in the order in which a step makes them
  int64_t slab_bytes = 0;                // 0: nothing is planned
};

struct PlannedSlabStats {
  int64_t step_count = 0;
  int64_t hit_count = 0;       // served at planned addresses
  int64_t miss_count = 0;      // in a step, and not as planned
  int64_t conflict_count = 0;  // of these: the planned place was still in use
  int64_t online_count = 0;    // outside of a step, or on other streams
  int64_t wait_count = 0;      // a stream was made to wait for another's use of a place
  int64_t live_bytes = 0, peak_live_bytes = 0;
  int64_t reserved_bytes = 0, peak_reserved_bytes = 0;  // slab and pool
  int64_t upstream_count = 0;                           // pieces of memory taken from the device so far
};

class PlannedSlab {
 public:
  static constexpr int64_t kAlignment = 512;

  // Throws InputError for a plan that leaves its slab, BudgetError where the device has no room for it.
  PlannedSlab(std::shared_ptr<Device> device, SlabPlan plan, int64_t pool_slab_bytes = int64_t{32} << 20);
  // Memory that is still handed out goes too.
  ~PlannedSlab();
  PlannedSlab(const PlannedSlab&) = delete;
  PlannedSlab& operator=(const PlannedSlab&) = delete;

  // The next request on `stream` is the plan's first.
  void begin_step(StreamView stream);
  // What follows is of no step.
  void end_step();

  // Null for no bytes. Throws BudgetError, once the pool's free memory was given back and did not help.
  void* allocate(int64_t bytes, StreamView stream);
  // Throws InputError for what was not handed out. Null is nothing.
  void free(void* pointer);
  // `stream` uses the block too: nobody gets its place before the work issued there by the time of the free is done.
  void record_stream(void* pointer, StreamView stream);
  // Gives free pool memory back to the device; the slab stays.
  void reset();

  // The piece of device memory that the address lies in; {nullptr, 0}: none of ours.
  std::pair<void*, int64_t> piece_of(const void* pointer) const;
  PlannedSlabStats stats() const;
  void check_invariants() const;  // throws Error on any breach; for tests

 private:
  enum class Mode { outside, planned, online };
  struct Block {
    int64_t bytes = 0;
    StreamView stream;
    std::vector<StreamView> users;  // other streams
  };
  // Uses by other streams that may not be over.
  struct Pending {
    int64_t begin = 0, end = 0;  // offsets in the slab; none for a block of the pool
    void* pointer = nullptr;     // of the pool
    Block block;
    std::vector<EventId> events;
  };
  class PoolUpstream;
  struct Pool {
    std::shared_ptr<PoolUpstream> upstream;
    std::shared_ptr<Arena> arena;
  };

  void* take_planned(int64_t bytes, StreamView stream);
  void* take_online(int64_t bytes, StreamView stream);
  Pool& pool_of(StreamView stream);
  bool is_free(int64_t begin, int64_t end) const;
  void follow(StreamView source, StreamView target);
  void order_after_users(int64_t begin, int64_t end, StreamView stream);
  EventId take_event();
  std::vector<EventId> record_users(const Block& block);
  bool are_over(const std::vector<EventId>& events);
  void give_events(std::vector<EventId>& events);
  void collect_pool();
  void note_live(int64_t change_bytes);
  char* slab() const { return static_cast<char*>(slab_); }

  const std::shared_ptr<Device> device_;
  const SlabPlan plan_;
  const int64_t pool_slab_bytes_;
  mutable std::mutex mutex_;
  void* slab_ = nullptr;
  Mode mode_ = Mode::outside;
  StreamView stream_;  // the planned one
  size_t position_ = 0;
  std::map<int64_t, Block> placed_;          // live, in the slab, by offset
  std::unordered_map<void*, Block> pooled_;  // live, in the pool
  std::map<uintptr_t, Pool> pools_;          // by stream
  std::vector<Pending> slab_pending_, pool_pending_;
  std::vector<EventId> free_events_;
  PlannedSlabStats stats_;
};

}  // namespace memsys
