// See layer_store.h: the handles. The state is in layer_slots.h.
#include "engine/layer_store.h"

#include <string>

#include "base/error.h"
#include "engine/layer_slots.h"

namespace memsys {

LayerLease::~LayerLease() {
  if (slot_ >= 0) slots_->release(slot_);
}

int64_t LayerLease::part_count() const { return slots_->part_count(layer_); }

LayerBytes LayerLease::part(int64_t index) const {
  MEMSYS_EXPECT(index >= 0 && index < part_count(), InputError,
                "layer " + std::to_string(layer_) + " has no part " + std::to_string(index) + ": it has " +
                    std::to_string(part_count()) + ", counted from 0");
  return slots_->bytes_of(slot_, layer_, index);
}

LayerStore::LayerStore(LayerStoreOptions options) : slots_(std::make_shared<LayerSlots>(std::move(options))) {}

LayerStore::~LayerStore() { slots_->close(); }

LeaseRef LayerStore::acquire(int64_t layer, Visit visit) { return slots_->acquire({layer, visit}); }

void LayerStore::drop(int64_t layer) { slots_->drop(layer); }

LayerStoreStats LayerStore::stats() const { return slots_->stats(); }

int64_t LayerStore::slot_bytes() const { return slots_->slot_bytes(); }

int64_t LayerStore::window_layers() const { return slots_->window_layers(); }

}  // namespace memsys
