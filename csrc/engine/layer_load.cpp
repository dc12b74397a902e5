// How a layer comes into its slot: all its parts at once, each verified by its file, then moved to where they are
// aligned; and when: on demand, or early, by a task that every acquire and release posts.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "engine/layer_slots.h"

namespace memsys {
namespace {

// Under way at once: two layers hide what passes between the end of one and the start of the next; of small ones, as
// many as keep the disk busy.
constexpr int64_t kFlightBytes = 64 * kMiB;
constexpr int64_t kLeastFlightCount = 2;

}  // namespace

void LayerSlots::Load::keep(std::exception_ptr part_error) {
  if (part_error == nullptr) return;
  const std::lock_guard lock(mutex);
  if (error == nullptr) error = std::move(part_error);
}

LayerSlots::LoadRef LayerSlots::begin_load_locked(int64_t layer, int64_t slot) {
  auto load = std::make_shared<Load>(layer, slot);
  slots_[static_cast<size_t>(slot)].layer = layer;
  slots_[static_cast<size_t>(slot)].load = load;
  ++stats_.load_count;
  ++stats_.in_flight_count;
  return load;
}

// The slot's memory is its loader's alone until the load has ended.
void LayerSlots::start(const LoadRef& load) {
  const auto layer = static_cast<size_t>(load->layer);
  Buffer& memory = slots_[static_cast<size_t>(load->slot)].memory;
  try {
    if (memory.empty()) memory = Buffer(memory_, slot_bytes_);
    for (size_t index = 0; index < layers_[layer].size(); ++index) {
      const LayerPart& part = layers_[layer][index];
      char* room = static_cast<char*>(memory.data()) + places_[layer][index].room_bytes;
      load->left_count += 1;
      try {
        part.file->start_read(part.offset_bytes, part.size_bytes, room,
                              [this, load](std::exception_ptr error) { end_part(load, std::move(error)); });
      } catch (...) {
        load->left_count -= 1;  // not the last: the starter's share is still to come
        throw;
      }
    }
  } catch (...) {
    load->keep(std::current_exception());
  }
  end_part(load, nullptr);
}

void LayerSlots::end_part(const LoadRef& load, std::exception_ptr error) {
  load->keep(std::move(error));
  if (load->left_count.fetch_sub(1) != 1) return;
  const auto& places = places_[static_cast<size_t>(load->layer)];
  const bool must_move = std::any_of(places.begin(), places.end(),
                                     [](const PartPlace& place) { return place.arrival_bytes != place.final_bytes; });
  if (load->error != nullptr || !must_move) return end(load);
  try {
    runtime_->executor->post(queue_, [this, load] {
      settle(*load);
      end(load);
    });
  } catch (...) {
    load->keep(std::current_exception());
    end(load);
  }
}

void LayerSlots::settle(const Load& load) {
  const auto layer = static_cast<size_t>(load.layer);
  char* memory = static_cast<char*>(slots_[static_cast<size_t>(load.slot)].memory.data());
  for (size_t index = 0; index < places_[layer].size(); ++index) {
    const PartPlace& place = places_[layer][index];
    if (place.arrival_bytes != place.final_bytes)
      std::memmove(memory + place.final_bytes, memory + place.arrival_bytes,
                   static_cast<size_t>(layers_[layer][index].size_bytes));
  }
}

void LayerSlots::end(const LoadRef& load) {
  Executor& executor = *runtime_->executor;
  {
    const std::lock_guard lock(mutex_);
    Slot& slot = slots_[static_cast<size_t>(load->slot)];
    slot.load = nullptr;
    if (load->error != nullptr) {
      slot.layer = -1;
      has_failed_[static_cast<size_t>(load->layer)] = load->waiter_count == 0;
    } else {
      slot.lease_count = load->waiter_count;
      for (const LayerPart& part : layers_[static_cast<size_t>(load->layer)])
        stats_.read_bytes += WeightFile::room_bytes(part.offset_bytes, part.size_bytes);
    }
    load->done.finish(load->error);
    schedule_fetch_locked();
    --stats_.in_flight_count;  // from here on the store may be dropped
  }
  executor.notify();
}

void LayerSlots::fetch_early() {
  const int64_t flight_limit = std::max(kLeastFlightCount, kFlightBytes / slot_bytes_);
  for (;;) {
    LoadRef load;
    {
      const std::lock_guard lock(mutex_);
      is_fetch_posted_ = false;
      if (is_closed_ || blocked_count_ > 0 || stats_.in_flight_count >= flight_limit) return;
      const auto fetch = choose_fetch(static_cast<int64_t>(layers_.size()), at_, view_locked());
      if (!fetch || has_failed_[static_cast<size_t>(fetch->layer)]) return;
      load = begin_load_locked(fetch->layer, fetch->slot);
    }
    start(load);
  }
}

// Fetching asks the file system and takes memory: too slow for whoever gives a layer back.
void LayerSlots::schedule_fetch_locked() noexcept {
  if (is_closed_ || !is_walking_ || is_fetch_posted_) return;
  try {
    runtime_->executor->post(queue_, [this] {
      try {
        fetch_early();
      } catch (const std::exception&) {
        // No memory for the list of slots: as below.
      }
    });
    is_fetch_posted_ = true;
  } catch (const std::exception&) {
    // What is not fetched early is loaded when it is wanted.
  }
}

void LayerSlots::schedule_fetch() {
  const std::lock_guard lock(mutex_);
  schedule_fetch_locked();
}

}  // namespace memsys
