// See resources.h: memory of the device itself, ordered on its default stream.
#include "base/error.h"
#include "memory/resources.h"

namespace memsys {
namespace {

class DeviceResource final : public MemoryResource {
 public:
  explicit DeviceResource(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  void* allocate(int64_t bytes) override {
    MEMSYS_EXPECT(bytes > 0, InputError,
                  "device memory: asked for " + std::to_string(bytes) + " bytes; ask for at least one");
    return device_->allocate(bytes, StreamView{});
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override { device_->free(pointer, bytes, StreamView{}); }
  Tier tier() const override { return Tier::device; }

 private:
  const std::shared_ptr<Device> device_;
};

}  // namespace

std::shared_ptr<MemoryResource> make_device_resource(std::shared_ptr<Device> device) {
  MEMSYS_EXPECT(device != nullptr, InputError, "device memory: no device given");
  return std::make_shared<DeviceResource>(std::move(device));
}

}  // namespace memsys
