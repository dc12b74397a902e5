// The state of a layer store, which its leases share and which outlives it with the last of them.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/layer_store.h"
#include "engine/ticket.h"
#include "memory/buffer.h"
#include "memory/byte_budget.h"

namespace memsys {

class LayerSlots : public std::enable_shared_from_this<LayerSlots> {
 public:
  explicit LayerSlots(LayerStoreOptions options);

  LeaseRef acquire(const WalkPosition& at);
  void release(int64_t slot);
  void drop(int64_t layer);
  // No more loads; returns once none is under way.
  void close();

  LayerStoreStats stats() const;
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t window_layers() const { return static_cast<int64_t>(slots_.size()); }
  int64_t part_count(int64_t layer) const { return static_cast<int64_t>(places_[static_cast<size_t>(layer)].size()); }
  LayerBytes bytes_of(int64_t slot, int64_t layer, int64_t part) const;

 private:
  // One layer on its way into a slot. Counts its parts down, and the share of the thread that starts them.
  struct Load {
    int64_t layer, slot;
    int64_t waiter_count = 0;  // acquires that will have a lease when it ends well
    Ticket done;
    std::atomic<int64_t> left_count{1};
    std::mutex mutex;
    std::exception_ptr error;

    Load(int64_t layer_loaded, int64_t slot_filled) : layer(layer_loaded), slot(slot_filled) {}
    void keep(std::exception_ptr part_error);
  };
  using LoadRef = std::shared_ptr<Load>;

  struct Slot {
    Buffer memory;  // none before the first load
    int64_t layer = -1;
    int64_t lease_count = 0;
    LoadRef load;            // null: the layer is there
    bool is_spoilt = false;  // the layer goes with its last lease
  };

  // What an acquire found, or began, under the lock. blocked: it has to wait for the load of another layer.
  enum class Claimed { present, coming, begun, blocked };
  struct Claim {
    Claimed how;
    LoadRef load;  // null where the layer is present
  };

  Claim claim(const WalkPosition& at, LayerLease& lease);
  void wait_for(const Claim& claim, LayerLease& lease);
  void withdraw_locked(const Claim& claim);
  LoadRef begin_load_locked(int64_t layer, int64_t slot);
  void start(const LoadRef& load);
  void end_part(const LoadRef& load, std::exception_ptr error);
  void settle(const Load& load);
  void end(const LoadRef& load);
  void fetch_early();
  void schedule_fetch_locked() noexcept;
  void schedule_fetch();
  std::vector<WindowSlot> view_locked() const;
  Slot* find_locked(int64_t layer);
  static void empty_locked(Slot& slot);
  std::string describe_held_locked() const;

  const std::shared_ptr<Runtime> runtime_;
  const std::vector<LayerParts> layers_;
  const int64_t slot_bytes_;
  const std::shared_ptr<ByteBudget> budget_;
  const std::shared_ptr<MemoryResource> memory_;
  const pid_t owner_pid_;
  std::vector<std::vector<PartPlace>> places_;  // by layer
  QueueId queue_ = 0;                           // early fetches, and the moving of parts

  mutable std::mutex mutex_;  // guards what follows; never held across a transfer
  std::vector<Slot> slots_;
  WalkPosition at_;
  std::vector<bool> has_failed_;  // by layer: an early fetch that nobody wanted failed; its acquire tries again
  LayerStoreStats stats_;
  int64_t blocked_count_ = 0;  // acquires that wait for room, which no early fetch may take first
  bool is_walking_ = false, is_closed_ = false, is_fetch_posted_ = false;
};

}  // namespace memsys
