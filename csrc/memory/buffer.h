// Owns bytes of one resource and gives them back when it dies. Moved-from: empty.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "memory/memory_resource.h"

namespace memsys {

class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<MemoryResource> resource, int64_t bytes)
      : resource_(std::move(resource)), pointer_(resource_->allocate(bytes)), bytes_(bytes) {}
  // Takes over bytes that `resource` allocated.
  Buffer(std::shared_ptr<MemoryResource> resource, void* pointer, int64_t bytes)
      : resource_(std::move(resource)), pointer_(pointer), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (pointer_ != nullptr) resource_->deallocate(pointer_, bytes_);
  }

  void* data() const { return pointer_; }
  int64_t size() const { return bytes_; }
  bool empty() const { return pointer_ == nullptr; }
  Tier tier() const { return resource_->tier(); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(pointer_, other.pointer_);
    std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<MemoryResource> resource_;
  void* pointer_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace memsys
