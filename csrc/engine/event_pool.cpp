// See event_pool.h.
#include "engine/event_pool.h"

#include "base/small_memory.h"

namespace memsys {

PooledEvent::~PooledEvent() { pool_->give(id_); }

EventPool::~EventPool() {
  for (const EventId event : free_) device_->destroy_event(event);
}

EventRef EventPool::take() {
  {
    const std::lock_guard lock(free_mutex_);
    if (!free_.empty()) {
      const EventId id = free_.back();
      free_.pop_back();
      return make_small<PooledEvent>(shared_from_this(), id);
    }
  }
  return make_small<PooledEvent>(shared_from_this(), device_->create_event());
}

void EventPool::give(EventId id) noexcept {
  const std::lock_guard lock(free_mutex_);
  free_.push_back(id);
}

}  // namespace memsys
