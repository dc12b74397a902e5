// See device.h: every call goes to the inner device, but pinning may be made to fail.
#include <string>
#include <utility>

#include "base/error.h"
#include "device/forwarding_device.h"

namespace memsys {
namespace {

class FaultyDevice final : public ForwardingDevice {
 public:
  FaultyDevice(std::shared_ptr<Device> inner, std::shared_ptr<FaultCounter> pin_faults)
      : ForwardingDevice(std::move(inner)), pin_faults_(std::move(pin_faults)) {}

  void register_host(void* pointer, int64_t bytes) override {
    MEMSYS_EXPECT(!pin_faults_->next_fails(), DeviceError,
                  "cannot pin " + std::to_string(bytes) + " bytes: a fault was injected here; disarm it");
    ForwardingDevice::register_host(pointer, bytes);
  }

 private:
  const std::shared_ptr<FaultCounter> pin_faults_;
};

}  // namespace

std::shared_ptr<Device> make_faulty_device(std::shared_ptr<Device> inner, std::shared_ptr<FaultCounter> pin_faults) {
  MEMSYS_EXPECT(inner != nullptr && pin_faults != nullptr, InputError, "faulty device: give a device and a counter");
  return std::make_shared<FaultyDevice>(std::move(inner), std::move(pin_faults));
}

}  // namespace memsys
