// See resources.h: fails on purpose, so that tests drive the shipped code down its paths of failure.
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "memory/resources.h"

namespace memsys {
namespace {

class CountingFaultyResource final : public FaultyMemoryResource {
 public:
  CountingFaultyResource(std::shared_ptr<MemoryResource> upstream, std::shared_ptr<FaultCounter> faults)
      : upstream_(std::move(upstream)), faults_(std::move(faults)) {}

  void arm(int64_t at, bool persistent) override {
    faults_->arm(at, persistent ? FaultSpan::persistent : FaultSpan::once);
  }
  int64_t attempt_count() const override { return faults_->attempt_count(); }
  void* allocate(int64_t bytes) override {
    MEMSYS_EXPECT(!faults_->next_fails(), BudgetError,
                  std::string(tier_name(tier())) + " memory: wanted " + format_bytes(bytes) +
                      ", but a fault was injected here; disarm it with arm(-1, false)");
    return upstream_->allocate(bytes);
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override { upstream_->deallocate(pointer, bytes); }
  Tier tier() const override { return upstream_->tier(); }

 private:
  const std::shared_ptr<MemoryResource> upstream_;
  const std::shared_ptr<FaultCounter> faults_;
};

}  // namespace

std::shared_ptr<FaultyMemoryResource> make_faulty_resource(std::shared_ptr<MemoryResource> upstream,
                                                           std::shared_ptr<FaultCounter> faults) {
  MEMSYS_EXPECT(upstream != nullptr, InputError, "faulty memory: no upstream given");
  if (faults == nullptr) faults = std::make_shared<FaultCounter>();
  return std::make_shared<CountingFaultyResource>(std::move(upstream), std::move(faults));
}

}  // namespace memsys
