// See limited_resource.h.
#include "memory/limited_resource.h"

namespace memsys {
namespace {

class LimitedResource : public MemoryResource {
 public:
  LimitedResource(std::shared_ptr<MemoryResource> upstream, std::shared_ptr<ByteBudget> budget)
      : upstream_(std::move(upstream)), budget_(std::move(budget)) {}

  void* allocate(int64_t bytes) override {
    budget_->reserve(bytes);
    try {
      return upstream_->allocate(bytes);
    } catch (...) {
      budget_->release(bytes);
      throw;
    }
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override {
    upstream_->deallocate(pointer, bytes);
    budget_->release(bytes);
  }
  Tier tier() const override { return upstream_->tier(); }

 private:
  std::shared_ptr<MemoryResource> upstream_;
  std::shared_ptr<ByteBudget> budget_;
};

}  // namespace

std::shared_ptr<MemoryResource> make_limited_resource(std::shared_ptr<MemoryResource> upstream,
                                                      std::shared_ptr<ByteBudget> budget) {
  return std::make_shared<LimitedResource>(std::move(upstream), std::move(budget));
}

}  // namespace memsys
