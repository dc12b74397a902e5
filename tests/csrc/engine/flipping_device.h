// A device whose link flips bits on purpose: the last byte of the n-th copy arrives wrong, wherever it goes.
#pragma once

#include "csrc/engine/deaf_device.h"

namespace engine_test {

class FlippingDevice final : public DeafDevice {
 public:
  using DeafDevice::DeafDevice;

  // Counted from 0, from now on; -1: none. `wrong`: what arrives in place of the last byte.
  void flip(int at, unsigned char wrong) { flipped_ = at, copy_count_ = 0, wrong_ = wrong; }
  int copy_count() const { return copy_count_; }

  void copy(void* target, const void* source, int64_t bytes, StreamView stream) override {
    if (copy_count_++ != flipped_) return inner().copy(target, source, bytes, stream);
    inner().copy(target, source, bytes - 1, stream);
    inner().copy(static_cast<unsigned char*>(target) + bytes - 1, &wrong_, 1, stream);
  }

 private:
  unsigned char wrong_ = 0;
  int flipped_ = -1, copy_count_ = 0;
};

}  // namespace engine_test
