// See planned_slab.h. The pool is one arena a stream over device memory of that stream. One lock guards all; it is let
// go while an arena takes memory from the device, which may take milliseconds.
#include "memory/planned_slab.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {

// Device memory on one stream, counted for all pools together.
class PlannedSlab::PoolUpstream final : public MemoryResource {
 public:
  PoolUpstream(std::shared_ptr<Device> device, StreamView stream) : device_(std::move(device)), stream_(stream) {}
  void* allocate(int64_t bytes) override {
    void* pointer = device_->allocate(bytes, stream_);
    const std::lock_guard lock(mutex_);
    pieces_.emplace(static_cast<char*>(pointer), bytes);
    taken_count_++;
    held_bytes_ += bytes;
    return pointer;
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      pieces_.erase(static_cast<char*>(pointer));
      held_bytes_ -= bytes;
    }
    device_->free(pointer, bytes, stream_);
  }
  Tier tier() const override { return Tier::device; }

  std::pair<void*, int64_t> piece_of(const void* pointer) const {
    const std::lock_guard lock(mutex_);
    const auto after = pieces_.upper_bound(const_cast<char*>(static_cast<const char*>(pointer)));
    if (after == pieces_.begin()) return {nullptr, 0};
    const auto [base, bytes] = *std::prev(after);
    if (static_cast<const char*>(pointer) >= base + bytes) return {nullptr, 0};
    return {base, bytes};
  }
  int64_t taken_count() const { return taken_count_; }
  int64_t held_bytes() const { return held_bytes_; }

 private:
  const std::shared_ptr<Device> device_;
  const StreamView stream_;
  mutable std::mutex mutex_;
  std::map<char*, int64_t> pieces_;
  std::atomic<int64_t> taken_count_{0}, held_bytes_{0};
};

PlannedSlab::PlannedSlab(std::shared_ptr<Device> device, SlabPlan plan, int64_t pool_slab_bytes)
    : device_(std::move(device)), plan_(std::move(plan)), pool_slab_bytes_(pool_slab_bytes) {
  for (size_t index = 0; index < plan_.requests.size(); ++index) {
    const PlannedRequest& request = plan_.requests[index];
    MEMSYS_EXPECT(request.bytes > 0 && request.offset >= 0 && request.offset % kAlignment == 0 &&
                      request.bytes <= plan_.slab_bytes - request.offset,
                  InputError,
                  "planned slab: request " + std::to_string(index) + " of " + std::to_string(request.bytes) +
                      " bytes at offset " + std::to_string(request.offset) + " is not aligned to " +
                      std::to_string(kAlignment) + " inside a slab of " + std::to_string(plan_.slab_bytes) +
                      "; plan the addresses again");
  }
  if (plan_.slab_bytes > 0) {
    slab_ = device_->allocate(plan_.slab_bytes, {});
    stats_.upstream_count = 1;
  }
}

PlannedSlab::~PlannedSlab() {
  try {
    follow(stream_, {});  // the slab goes back to the default stream: after all that used it
    order_after_users(0, plan_.slab_bytes, {});
    for (Pending& pending : pool_pending_)
      for (const EventId event : pending.events) device_->synchronize(event);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "memsys: planned slab: while waiting for its streams at the end: %s\n", error.what());
  }
  collect_pool();
  for (const auto& [pointer, block] : pooled_) pools_.at(block.stream.value).arena->deallocate(pointer, block.bytes);
  pools_.clear();
  for (const EventId event : free_events_) device_->destroy_event(event);
  if (slab_ != nullptr) device_->free(slab_, plan_.slab_bytes, {});
}

// Later work of `target` starts after what `source` has been given so far.
void PlannedSlab::follow(StreamView source, StreamView target) {
  if (source == target) return;
  const EventId event = take_event();
  device_->record(event, source);
  device_->wait(target, event);
  free_events_.push_back(event);
  ++stats_.wait_count;
}

void PlannedSlab::begin_step(StreamView stream) {
  const std::lock_guard lock(mutex_);
  if (stats_.step_count > 0) follow(stream_, stream);  // places that were freed on the other are handed out on this one
  stream_ = stream;
  mode_ = Mode::planned;
  position_ = 0;
  ++stats_.step_count;
}

void PlannedSlab::end_step() {
  const std::lock_guard lock(mutex_);
  mode_ = Mode::outside;
}

void* PlannedSlab::allocate(int64_t bytes, StreamView stream) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "planned slab: asked for " + std::to_string(bytes) + " bytes");
  if (bytes == 0) return nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (void* pointer = take_planned(bytes, stream); pointer != nullptr) return pointer;
  }
  return take_online(bytes, stream);
}

// Null: this request is none of the plan's, or its place is taken.
void* PlannedSlab::take_planned(int64_t bytes, StreamView stream) {
  if (mode_ == Mode::outside || !(stream == stream_)) {
    ++stats_.online_count;
    return nullptr;
  }
  const size_t position = position_++;
  if (position >= plan_.requests.size() || plan_.requests[position].bytes != bytes) mode_ = Mode::online;
  if (mode_ == Mode::online) {
    ++stats_.miss_count;
    return nullptr;
  }
  const int64_t begin = plan_.requests[position].offset, end = begin + bytes;
  if (!is_free(begin, end)) {
    ++stats_.miss_count;
    ++stats_.conflict_count;
    return nullptr;
  }
  order_after_users(begin, end, stream);
  placed_.emplace(begin, Block{bytes, stream, {}});
  ++stats_.hit_count;
  note_live(bytes);
  return slab() + begin;
}

void* PlannedSlab::take_online(int64_t bytes, StreamView stream) {
  std::shared_ptr<Arena> arena;
  {
    const std::lock_guard lock(mutex_);
    collect_pool();
    arena = pool_of(stream).arena;
  }
  void* pointer = nullptr;
  try {
    pointer = arena->allocate(bytes);
  } catch (const BudgetError&) {
    reset();  // the other streams' pools may hold what is wanted
    pointer = arena->allocate(bytes);
  }
  const std::lock_guard lock(mutex_);
  pooled_.emplace(pointer, Block{bytes, stream, {}});
  note_live(bytes);
  return pointer;
}

PlannedSlab::Pool& PlannedSlab::pool_of(StreamView stream) {
  const auto [found, is_new] = pools_.try_emplace(stream.value);
  if (is_new) {
    found->second.upstream = std::make_shared<PoolUpstream>(device_, stream);
    found->second.arena = make_arena(found->second.upstream, {.slab_bytes = pool_slab_bytes_, .alignment = kAlignment});
  }
  return found->second;
}

void PlannedSlab::free(void* pointer) {
  if (pointer == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto offset = static_cast<const char*>(pointer) - slab();
  const bool is_placed = slab_ != nullptr && offset >= 0 && offset < plan_.slab_bytes;
  if (is_placed) {
    const auto found = placed_.find(offset);
    MEMSYS_EXPECT(found != placed_.end(), InputError, "planned slab: freed what was not handed out, or freed it twice");
    const int64_t end = offset + found->second.bytes;
    note_live(-found->second.bytes);
    if (!found->second.users.empty()) slab_pending_.push_back({offset, end, nullptr, {}, record_users(found->second)});
    placed_.erase(found);
    return;
  }
  const auto found = pooled_.find(pointer);
  MEMSYS_EXPECT(found != pooled_.end(), InputError, "planned slab: freed what was not handed out, or freed it twice");
  Block block = std::move(found->second);
  pooled_.erase(found);
  note_live(-block.bytes);
  if (block.users.empty()) return pool_of(block.stream).arena->deallocate(pointer, block.bytes);
  std::vector<EventId> events = record_users(block);
  pool_pending_.push_back({0, 0, pointer, std::move(block), std::move(events)});
}

void PlannedSlab::record_stream(void* pointer, StreamView stream) {
  const std::lock_guard lock(mutex_);
  Block* block = nullptr;
  if (const auto found = pooled_.find(pointer); found != pooled_.end()) block = &found->second;
  if (slab_ != nullptr) {
    const auto found = placed_.find(static_cast<const char*>(pointer) - slab());
    if (found != placed_.end()) block = &found->second;
  }
  MEMSYS_EXPECT(block != nullptr, InputError, "planned slab: record_stream of what is not handed out");
  if (stream == block->stream) return;
  if (std::find(block->users.begin(), block->users.end(), stream) == block->users.end()) block->users.push_back(stream);
}

void PlannedSlab::reset() {
  const std::lock_guard lock(mutex_);
  collect_pool();
  for (auto& [stream, pool] : pools_) pool.arena->trim(0);
}

bool PlannedSlab::is_free(int64_t begin, int64_t end) const {
  const auto after = placed_.lower_bound(begin);
  if (after != placed_.end() && after->first < end) return false;
  if (after == placed_.begin()) return true;
  const auto& [offset, block] = *std::prev(after);
  return offset + block.bytes <= begin;
}

// `stream`, the planned one, waits for other streams' uses of the range. Having waited it is after them for good, so
// they are forgotten whole; so are those that are over.
void PlannedSlab::order_after_users(int64_t begin, int64_t end, StreamView stream) {
  std::erase_if(slab_pending_, [&](Pending& pending) {
    const bool is_wanted = pending.begin < end && begin < pending.end;
    if (!is_wanted && !are_over(pending.events)) return false;
    if (is_wanted) {
      for (const EventId event : pending.events) device_->wait(stream, event);
      stats_.wait_count += static_cast<int64_t>(pending.events.size());
    }
    give_events(pending.events);
    return true;
  });
}

std::vector<EventId> PlannedSlab::record_users(const Block& block) {
  std::vector<EventId> events;
  for (const StreamView user : block.users) {
    events.push_back(take_event());
    device_->record(events.back(), user);
  }
  return events;
}

EventId PlannedSlab::take_event() {
  if (free_events_.empty()) return device_->create_event();
  const EventId event = free_events_.back();
  free_events_.pop_back();
  return event;
}

bool PlannedSlab::are_over(const std::vector<EventId>& events) {
  return std::all_of(events.begin(), events.end(), [&](EventId event) { return device_->query(event); });
}

void PlannedSlab::give_events(std::vector<EventId>& events) {
  free_events_.insert(free_events_.end(), events.begin(), events.end());
  events.clear();
}

void PlannedSlab::collect_pool() {
  std::erase_if(pool_pending_, [&](Pending& pending) {
    if (!are_over(pending.events)) return false;
    give_events(pending.events);
    pool_of(pending.block.stream).arena->deallocate(pending.pointer, pending.block.bytes);
    return true;
  });
}

void PlannedSlab::note_live(int64_t change_bytes) {
  stats_.live_bytes += change_bytes;
  stats_.peak_live_bytes = std::max(stats_.peak_live_bytes, stats_.live_bytes);
  int64_t reserved = plan_.slab_bytes;
  for (const auto& [stream, pool] : pools_) reserved += pool.upstream->held_bytes();
  stats_.reserved_bytes = reserved;
  stats_.peak_reserved_bytes = std::max(stats_.peak_reserved_bytes, reserved);
}

std::pair<void*, int64_t> PlannedSlab::piece_of(const void* pointer) const {
  const std::lock_guard lock(mutex_);
  const auto offset = static_cast<const char*>(pointer) - slab();
  if (slab_ != nullptr && offset >= 0 && offset < plan_.slab_bytes) return {slab_, plan_.slab_bytes};
  for (const auto& [stream, pool] : pools_)
    if (const auto piece = pool.upstream->piece_of(pointer); piece.first != nullptr) return piece;
  return {nullptr, 0};
}

PlannedSlabStats PlannedSlab::stats() const {
  const std::lock_guard lock(mutex_);
  PlannedSlabStats result = stats_;
  result.reserved_bytes = plan_.slab_bytes;
  for (const auto& [stream, pool] : pools_) {
    result.upstream_count += pool.upstream->taken_count();
    result.reserved_bytes += pool.upstream->held_bytes();
  }
  return result;
}

void PlannedSlab::check_invariants() const {
  const std::lock_guard lock(mutex_);
  int64_t height = 0, live = 0;
  for (const auto& [offset, block] : placed_) {
    MEMSYS_EXPECT(offset >= height, Error, "planned slab: live blocks overlap at offset " + std::to_string(offset));
    height = offset + block.bytes;
    live += block.bytes;
  }
  MEMSYS_EXPECT(height <= plan_.slab_bytes, Error, "planned slab: a block ends outside of the slab");
  for (const auto& [pointer, block] : pooled_) live += block.bytes;
  MEMSYS_EXPECT(live == stats_.live_bytes, Error, "planned slab: live bytes are miscounted");
  for (const auto& [stream, pool] : pools_) pool.arena->check_invariants();
}

}  // namespace memsys
