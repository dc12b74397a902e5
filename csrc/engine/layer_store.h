// Frozen weights in a window: W equal slots of memory that hold layers of a model whose weights stay in files. Whoever
// computes with a layer acquires it, and holds a lease meanwhile; what comes next is fetched early, where the walk says
// that it costs no load later (plan/layer_window.h). Memory that is leased is neither written to nor given away.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/layer_layout.h"
#include "engine/runtime.h"
#include "plan/layer_window.h"

namespace memsys {

struct LayerStoreOptions {
  std::shared_ptr<Runtime> runtime;
  std::vector<LayerParts> layers;
  int64_t window_layers = 1;         // more than there are layers: all of them
  int64_t device_budget_bytes = -1;  // of the slots, those being filled included; -1: no limit
};

struct LayerStoreStats {
  int64_t load_count = 0;      // layers that the reader was sent for
  int64_t hit_count = 0;       // acquires that found their layer there
  int64_t read_bytes = 0;      // of loads that came in, with the pages around their parts
  int64_t stall_us = 0;        // that acquires waited
  int64_t resident_bytes = 0;  // memory of slots
  int64_t peak_resident_bytes = 0;
  int64_t in_flight_count = 0;  // loads under way
};

struct LayerBytes {
  void* data = nullptr;
  int64_t bytes = 0;
};

class LayerSlots;

// One use of a layer. Its bytes stay as they are until every lease of the layer is gone, store or no store; a forked
// child finds zeros there.
class LayerLease {
 public:
  explicit LayerLease(std::shared_ptr<LayerSlots> slots) : slots_(std::move(slots)) {}
  // Gives the layer back; from any thread. Never blocks.
  ~LayerLease();
  LayerLease(const LayerLease&) = delete;
  LayerLease& operator=(const LayerLease&) = delete;

  int64_t layer() const { return layer_; }
  int64_t part_count() const;
  // The bytes of part number `index`, at a multiple of 64 bytes. Throws InputError.
  LayerBytes part(int64_t index) const;

 private:
  friend class LayerSlots;
  const std::shared_ptr<LayerSlots> slots_;
  int64_t layer_ = -1, slot_ = -1;  // -1: nothing to give back
};
using LeaseRef = std::shared_ptr<LayerLease>;

class LayerStore {
 public:
  // Throws BudgetError where the window does not fit, saying how many layers would; InputError, or DeviceError for a
  // device whose memory files can't be read to.
  explicit LayerStore(LayerStoreOptions options);
  // Waits for what is under way. Leases live on.
  ~LayerStore();
  LayerStore(const LayerStore&) = delete;
  LayerStore& operator=(const LayerStore&) = delete;

  // Blocks (the GIL released) until the layer is there and verified. Throws what its load failed with, after which
  // the next acquire tries anew; BudgetError if every slot is leased or on its way to somebody else.
  LeaseRef acquire(int64_t layer, Visit visit);
  // Somebody wrote to the layer's memory: the next acquire after its last lease reads it again.
  void drop(int64_t layer);
  LayerStoreStats stats() const;
  int64_t slot_bytes() const;
  int64_t window_layers() const;

 private:
  const std::shared_ptr<LayerSlots> slots_;
};

}  // namespace memsys
