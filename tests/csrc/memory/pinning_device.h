// The host device, but with memory that must be pinned: it keeps the registrations and can refuse them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "device/forwarding_device.h"

namespace memory_test {

class PinningDevice : public memsys::ForwardingDevice {
 public:
  explicit PinningDevice(std::shared_ptr<memsys::Device> inner) : ForwardingDevice(std::move(inner)) {
    capabilities_ = ForwardingDevice::capabilities();
    capabilities_.needs_pinning = true;
  }
  const memsys::Capabilities& capabilities() const override { return capabilities_; }
  void register_host(void* pointer, int64_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (refuses) {
      last_refused = pointer;
      throw memsys::DeviceError("no pages left to lock");
    }
    registered_[pointer] = bytes;
  }
  void unregister_host(void* pointer) noexcept override {
    const std::lock_guard lock(mutex_);
    registered_.erase(pointer);
  }
  int64_t registered_bytes() const {
    const std::lock_guard lock(mutex_);
    int64_t total = 0;
    for (const auto& [pointer, bytes] : registered_) total += bytes;
    return total;
  }

  std::atomic<bool> refuses{false};
  std::atomic<void*> last_refused{nullptr};

 private:
  memsys::Capabilities capabilities_;
  mutable std::mutex mutex_;
  std::map<void*, int64_t> registered_;
};

}  // namespace memory_test
