// The host device, but with memory that must be pinned: it keeps the registrations and can refuse them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "device/device.h"

namespace memory_test {

class PinningDevice : public memsys::Device {
 public:
  explicit PinningDevice(std::shared_ptr<memsys::Device> inner) : inner_(std::move(inner)) {
    capabilities_ = inner_->capabilities();
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

  void* allocate(int64_t bytes, memsys::StreamView stream) override { return inner_->allocate(bytes, stream); }
  void free(void* pointer, int64_t bytes, memsys::StreamView stream) noexcept override {
    inner_->free(pointer, bytes, stream);
  }
  memsys::StreamView create_stream(const std::string& name) override { return inner_->create_stream(name); }
  void destroy_stream(memsys::StreamView stream) noexcept override { inner_->destroy_stream(stream); }
  memsys::EventId create_event() override { return inner_->create_event(); }
  void destroy_event(memsys::EventId event) noexcept override { inner_->destroy_event(event); }
  void record(memsys::EventId event, memsys::StreamView stream) override { inner_->record(event, stream); }
  void wait(memsys::StreamView stream, memsys::EventId event) override { inner_->wait(stream, event); }
  bool query(memsys::EventId event) override { return inner_->query(event); }
  void synchronize(memsys::EventId event) override { inner_->synchronize(event); }
  memsys::Gate gate(memsys::EventId event) override { return inner_->gate(event); }
  void copy(void* target, const void* source, int64_t bytes, memsys::StreamView stream) override {
    inner_->copy(target, source, bytes, stream);
  }
  void fill(void* target, unsigned char value, int64_t bytes, memsys::StreamView stream) override {
    inner_->fill(target, value, bytes, stream);
  }
  void note_use(const void* pointer, int64_t bytes, memsys::StreamView stream, memsys::Use use) override {
    inner_->note_use(pointer, bytes, stream, use);
  }
  void note_free(const void* pointer, int64_t bytes, memsys::StreamView stream) override {
    inner_->note_free(pointer, bytes, stream);
  }
  void note_user(const void* pointer, memsys::StreamView stream) override { inner_->note_user(pointer, stream); }

  std::atomic<bool> refuses{false};
  std::atomic<void*> last_refused{nullptr};

 private:
  const std::shared_ptr<memsys::Device> inner_;
  memsys::Capabilities capabilities_;
  mutable std::mutex mutex_;
  std::map<void*, int64_t> registered_;
};

}  // namespace memory_test
