// See device.h: every call goes to the inner device, but pinning may be made to fail.
#include <string>
#include <utility>

#include "base/error.h"
#include "device/device.h"

namespace memsys {
namespace {

class FaultyDevice final : public Device {
 public:
  FaultyDevice(std::shared_ptr<Device> inner, std::shared_ptr<FaultCounter> pin_faults)
      : inner_(std::move(inner)), pin_faults_(std::move(pin_faults)) {}

  const Capabilities& capabilities() const override { return inner_->capabilities(); }

  void* allocate(int64_t bytes, StreamView stream) override { return inner_->allocate(bytes, stream); }
  void free(void* pointer, int64_t bytes, StreamView stream) noexcept override { inner_->free(pointer, bytes, stream); }
  void register_host(void* pointer, int64_t bytes) override {
    MEMSYS_EXPECT(!pin_faults_->next_fails(), DeviceError,
                  "cannot pin " + std::to_string(bytes) + " bytes: a fault was injected here; disarm it");
    inner_->register_host(pointer, bytes);
  }
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

 private:
  const std::shared_ptr<Device> inner_;
  const std::shared_ptr<FaultCounter> pin_faults_;
};

}  // namespace

std::shared_ptr<Device> make_faulty_device(std::shared_ptr<Device> inner, std::shared_ptr<FaultCounter> pin_faults) {
  MEMSYS_EXPECT(inner != nullptr && pin_faults != nullptr, InputError, "faulty device: give a device and a counter");
  return std::make_shared<FaultyDevice>(std::move(inner), std::move(pin_faults));
}

}  // namespace memsys
