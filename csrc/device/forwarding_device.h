// A device that passes every call on to another: the base of those that change one or two of them, to count, to fail or
// to miss an edge on purpose.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "device/device.h"

namespace memsys {

class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::shared_ptr<Device> inner) : inner_(std::move(inner)) {}

  const Capabilities& capabilities() const override { return inner_->capabilities(); }
  void* allocate(int64_t bytes, StreamView stream) override { return inner_->allocate(bytes, stream); }
  void free(void* pointer, int64_t bytes, StreamView stream) noexcept override { inner_->free(pointer, bytes, stream); }
  void register_host(void* pointer, int64_t bytes) override { inner_->register_host(pointer, bytes); }
  void unregister_host(void* pointer) noexcept override { inner_->unregister_host(pointer); }
  StreamView create_stream(const std::string& name) override { return inner_->create_stream(name); }
  void destroy_stream(StreamView stream) noexcept override { inner_->destroy_stream(stream); }
  EventId create_event() override { return inner_->create_event(); }
  void destroy_event(EventId event) noexcept override { inner_->destroy_event(event); }
  void record(EventId event, StreamView stream) override { inner_->record(event, stream); }
  void wait(StreamView stream, EventId event) override { inner_->wait(stream, event); }
  bool query(EventId event) override { return inner_->query(event); }
  void synchronize(EventId event) override { inner_->synchronize(event); }
  Gate gate(EventId event) override { return inner_->gate(event); }
  void copy(void* target, const void* source, int64_t bytes, StreamView stream) override {
    inner_->copy(target, source, bytes, stream);
  }
  void fill(void* target, unsigned char value, int64_t bytes, StreamView stream) override {
    inner_->fill(target, value, bytes, stream);
  }
  void note_use(const void* pointer, int64_t bytes, StreamView stream, Use use) override {
    inner_->note_use(pointer, bytes, stream, use);
  }
  void note_free(const void* pointer, int64_t bytes, StreamView stream) override {
    inner_->note_free(pointer, bytes, stream);
  }
  void note_user(const void* pointer, StreamView stream) override { inner_->note_user(pointer, stream); }

 protected:
  Device& inner() const { return *inner_; }

 private:
  const std::shared_ptr<Device> inner_;
};

}  // namespace memsys
