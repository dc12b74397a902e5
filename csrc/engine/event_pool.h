// Events of a device, reused. Events outlive transfers, stores and engines in any order (saved blocks hold them), so
// they belong to this pool, which touches no thread when it goes.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"

namespace memsys {

class EventPool;

class PooledEvent {
 public:
  PooledEvent(std::shared_ptr<EventPool> pool, EventId id) : pool_(std::move(pool)), id_(id) {}
  ~PooledEvent();
  PooledEvent(const PooledEvent&) = delete;
  PooledEvent& operator=(const PooledEvent&) = delete;
  EventId id() const { return id_; }

 private:
  std::shared_ptr<EventPool> pool_;
  EventId id_;
};
using EventRef = std::shared_ptr<PooledEvent>;

class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  explicit EventPool(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~EventPool();
  EventRef take();

 private:
  friend class PooledEvent;
  void give(EventId id) noexcept;

  const std::shared_ptr<Device> device_;
  std::mutex free_mutex_;
  std::vector<EventId> free_;
};

}  // namespace memsys
