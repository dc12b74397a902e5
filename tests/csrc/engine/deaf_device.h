// A device that forgets one edge on purpose: it forwards everything to another, but does not pass on the n-th wait(),
// or opens the n-th gate too early. So the tests show that each edge of the engine is needed, and that its absence
// is found.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/device.h"

namespace engine_test {

using namespace memsys;

class DeafDevice : public Device {
 public:
  explicit DeafDevice(std::shared_ptr<Device> inner) : inner_(std::move(inner)) {}

  // Counted from 0, from now on; -1: none.
  void miss_wait(int at) { missed_wait_ = at, wait_count_ = 0; }
  void miss_gate(int at) { missed_gate_ = at, gate_count_ = 0; }
  int wait_count() const { return wait_count_; }
  int gate_count() const { return gate_count_; }

  void wait(StreamView stream, EventId event) override {
    if (wait_count_++ != missed_wait_) inner_->wait(stream, event);
  }
  Gate gate(EventId event) override { return gate_count_++ == missed_gate_ ? Gate{} : inner_->gate(event); }

  const Capabilities& capabilities() const override { return inner_->capabilities(); }
  void* allocate(int64_t bytes, StreamView stream) override { return inner_->allocate(bytes, stream); }
  void free(void* pointer, int64_t bytes, StreamView stream) noexcept override { inner_->free(pointer, bytes, stream); }
  void register_host(void* pointer, int64_t bytes) override { inner_->register_host(pointer, bytes); }
  void unregister_host(void* pointer) noexcept override { inner_->unregister_host(pointer); }
  StreamView create_stream(const std::string& name) override {
    streams_.push_back(inner_->create_stream(name));
    return streams_.back();
  }
  // Waits for every stream made so far: what they touched may then be freed.
  void settle() {
    const EventId event = inner_->create_event();
    for (const StreamView stream : streams_) {
      inner_->record(event, stream);
      inner_->synchronize(event);
    }
    inner_->destroy_event(event);
  }
  void destroy_stream(StreamView stream) noexcept override { inner_->destroy_stream(stream); }
  EventId create_event() override { return inner_->create_event(); }
  void destroy_event(EventId event) noexcept override { inner_->destroy_event(event); }
  void record(EventId event, StreamView stream) override { inner_->record(event, stream); }
  bool query(EventId event) override { return inner_->query(event); }
  void synchronize(EventId event) override { inner_->synchronize(event); }
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

 private:
  const std::shared_ptr<Device> inner_;
  std::vector<StreamView> streams_;
  int missed_wait_ = -1, missed_gate_ = -1, wait_count_ = 0, gate_count_ = 0;
};

}  // namespace engine_test
