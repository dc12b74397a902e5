// See layer_slots.h: who holds which layer. How a layer comes in is in layer_load.cpp.
#include "engine/layer_slots.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/outlast.h"
#include "memory/limited_resource.h"
#include "memory/resources.h"

namespace memsys {
namespace {

using Clock = std::chrono::steady_clock;

std::shared_ptr<MemoryResource> slot_memory(const Runtime& runtime, const std::shared_ptr<ByteBudget>& budget) {
  return make_limited_resource(runtime.with_faults(make_mmap_resource()), budget);
}

const LayerStoreOptions& checked(const LayerStoreOptions& options) {
  MEMSYS_EXPECT(options.runtime != nullptr, InputError, "a layer store needs a runtime");
  MEMSYS_EXPECT(!options.layers.empty() && options.window_layers >= 1, InputError,
                "a window of " + std::to_string(options.window_layers) + " of " +
                    std::to_string(options.layers.size()) + " layers makes no sense: give at least one of both");
  const Capabilities& device = options.runtime->device->capabilities();
  MEMSYS_EXPECT(device.host_addressable, DeviceError,
                "weights are streamed to memory that the CPU reads, and '" + device.name +
                    "' has its own, for which streaming is not written yet; stream to the CPU");
  return options;
}

}  // namespace

LayerSlots::LayerSlots(LayerStoreOptions options)
    : runtime_(checked(options).runtime),
      layers_(std::move(options.layers)),
      slot_bytes_(layer_slot_bytes(layers_)),
      budget_(std::make_shared<ByteBudget>("device_budget", options.device_budget_bytes)),
      memory_(slot_memory(*runtime_, budget_)),
      owner_pid_(::getpid()),
      slots_(std::min(static_cast<size_t>(options.window_layers), layers_.size())),
      has_failed_(layers_.size(), false) {
  const int64_t wanted_bytes = checked_multiply(window_layers(), slot_bytes_), limit = budget_->limit_bytes();
  MEMSYS_EXPECT(limit < 0 || wanted_bytes <= limit, BudgetError,
                "device_budget: a window of " + std::to_string(window_layers()) + " layers of " +
                    format_bytes(slot_bytes_) + " each takes " + format_bytes(wanted_bytes) +
                    ", but device_budget leaves " + format_bytes(limit) + ", where " +
                    std::to_string(limit / slot_bytes_) + " would fit; lower window, or raise device_budget");
  for (const LayerParts& parts : layers_) places_.push_back(lay_out(parts));
  queue_ = runtime_->executor->create_queue("memsys-layers");
}

LeaseRef LayerSlots::acquire(const WalkPosition& at) {
  MEMSYS_EXPECT(at.layer >= 0 && std::cmp_less(at.layer, layers_.size()), InputError,
                "there is no layer " + std::to_string(at.layer) + ": the store has " + std::to_string(layers_.size()) +
                    ", counted from 0");
  // The slots are zeros in a child, so that it costs no memory; a hit there would be a layer of zeros.
  MEMSYS_EXPECT(::getpid() == owner_pid_, Error,
                "a store of layers does not survive fork(): stream the model anew in the child, or start worker "
                "processes with the 'spawn' method");
  const auto lease = std::make_shared<LayerLease>(shared_from_this());
  const auto begin = Clock::now();
  for (;;) {
    const Claim claim = this->claim(at, *lease);
    if (claim.how == Claimed::begun) start(claim.load);
    schedule_fetch();
    if (claim.how != Claimed::present) wait_for(claim, *lease);
    if (claim.how == Claimed::blocked) continue;
    const std::lock_guard lock(mutex_);
    if (claim.how == Claimed::present)
      ++stats_.hit_count;
    else
      stats_.stall_us += std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
    return lease;
  }
}

LayerSlots::Claim LayerSlots::claim(const WalkPosition& at, LayerLease& lease) {
  const std::lock_guard lock(mutex_);
  at_ = at;
  is_walking_ = true;
  has_failed_[static_cast<size_t>(at.layer)] = false;
  lease.layer_ = at.layer;
  if (Slot* slot = find_locked(at.layer)) {
    if (slot->load != nullptr) {
      ++slot->load->waiter_count;
      return {Claimed::coming, slot->load};
    }
    ++slot->lease_count;
    lease.slot_ = slot - slots_.data();
    return {Claimed::present, nullptr};
  }
  if (const auto slot = choose_slot(static_cast<int64_t>(layers_.size()), at, view_locked())) {
    const LoadRef load = begin_load_locked(at.layer, *slot);
    ++load->waiter_count;
    return {Claimed::begun, load};
  }
  for (const Slot& slot : slots_) {
    if (slot.load == nullptr || slot.load->waiter_count > 0) continue;
    ++blocked_count_;
    return {Claimed::blocked, slot.load};
  }
  throw BudgetError("layer " + std::to_string(at.layer) + " is wanted, but every slot of the window holds a layer in " +
                    "use (" + describe_held_locked() +
                    "); let go of the tensors of one first, or stream with a larger window");
}

// Returns with a lease that `end` has counted already, or throws what the load failed with.
void LayerSlots::wait_for(const Claim& claim, LayerLease& lease) {
  std::exception_ptr foreign;
  try {
    runtime_->executor->wait_until([&] { return claim.load->done.is_done(); });
  } catch (...) {
    foreign = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  if (claim.how == Claimed::blocked) --blocked_count_;
  if (foreign != nullptr) {
    withdraw_locked(claim);
    std::rethrow_exception(foreign);
  }
  if (claim.how == Claimed::blocked) return;
  if (claim.load->done.error() != nullptr) std::rethrow_exception(claim.load->done.error());
  lease.slot_ = claim.load->slot;
}

// Somebody else's task failed while this thread waited: it wants its layer no more.
void LayerSlots::withdraw_locked(const Claim& claim) {
  if (claim.how == Claimed::blocked) return;
  if (!claim.load->done.is_done())
    --claim.load->waiter_count;
  else if (claim.load->done.error() == nullptr)
    --slots_[static_cast<size_t>(claim.load->slot)].lease_count;
}

void LayerSlots::release(int64_t index) {
  Buffer dropped;  // given back to the system outside the lock
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(index)];
  if (--slot.lease_count > 0) return;
  if (slot.is_spoilt) empty_locked(slot);
  if (is_closed_)
    dropped = std::move(slot.memory);
  else
    schedule_fetch_locked();
}

void LayerSlots::drop(int64_t layer) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find_locked(layer);
  if (slot == nullptr || slot->load != nullptr) return;  // what is on its way is as the file has it
  slot->is_spoilt = true;
  if (slot->lease_count == 0) empty_locked(*slot);
}

void LayerSlots::empty_locked(Slot& slot) {
  slot.layer = -1;
  slot.is_spoilt = false;
}

void LayerSlots::close() {
  if (::getpid() != owner_pid_) return;  // a forked child has no threads: what is under way never ends there
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  outlast(*runtime_->executor, [this] {
    const std::lock_guard lock(mutex_);
    return stats_.in_flight_count == 0;
  });
  try {
    runtime_->executor->destroy_queue(queue_);
  } catch (const std::exception&) {
    // The queue then ends with its executor; the fetches that it still holds find the store closed.
  }
  const std::lock_guard lock(mutex_);
  for (Slot& slot : slots_)
    if (slot.lease_count == 0) slot.memory = {};
}

LayerStoreStats LayerSlots::stats() const {
  const std::lock_guard lock(mutex_);
  LayerStoreStats stats = stats_;
  stats.resident_bytes = budget_->used_bytes();
  stats.peak_resident_bytes = budget_->peak_bytes();
  return stats;
}

LayerBytes LayerSlots::bytes_of(int64_t slot, int64_t layer, int64_t part) const {
  const auto which = static_cast<size_t>(part), row = static_cast<size_t>(layer);
  char* memory = static_cast<char*>(slots_[static_cast<size_t>(slot)].memory.data());
  return {memory + places_[row][which].final_bytes, layers_[row][which].size_bytes};
}

std::vector<WindowSlot> LayerSlots::view_locked() const {
  std::vector<WindowSlot> view;
  for (const Slot& slot : slots_) {
    const bool is_held = slot.lease_count > 0 || slot.load != nullptr;
    view.push_back({slot.layer, is_held ? SlotUse::held : SlotUse::idle});
  }
  return view;
}

LayerSlots::Slot* LayerSlots::find_locked(int64_t layer) {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.layer == layer; });
  return found == slots_.end() ? nullptr : &*found;
}

std::string LayerSlots::describe_held_locked() const {
  std::string text;
  for (const Slot& slot : slots_) text += (text.empty() ? "" : ", ") + std::to_string(slot.layer);
  return text;
}

}  // namespace memsys
