// See resources.h: fails on purpose, so that tests drive the shipped code down its paths of failure.
#include <mutex>

#include "base/bytes.h"
#include "base/error.h"
#include "memory/resources.h"

namespace memsys {
namespace {

class CountingFaultyResource final : public FaultyMemoryResource {
 public:
  explicit CountingFaultyResource(std::shared_ptr<MemoryResource> upstream) : upstream_(std::move(upstream)) {}

  void arm(int64_t at, bool persistent) override {
    const std::lock_guard lock(mutex_);
    at_ = at;
    persistent_ = persistent;
    attempt_count_ = 0;
  }
  int64_t attempt_count() const override {
    const std::lock_guard lock(mutex_);
    return attempt_count_;
  }
  void* allocate(int64_t bytes) override {
    MEMSYS_EXPECT(!next_fails(), BudgetError,
                  std::string(tier_name(tier())) + " memory: wanted " + format_bytes(bytes) +
                      ", but a fault was injected here; disarm it with arm(-1, false)");
    return upstream_->allocate(bytes);
  }
  void deallocate(void* pointer, int64_t bytes) noexcept override { upstream_->deallocate(pointer, bytes); }
  Tier tier() const override { return upstream_->tier(); }

 private:
  bool next_fails() {
    const std::lock_guard lock(mutex_);
    const int64_t attempt = attempt_count_++;
    return at_ >= 0 && (persistent_ ? attempt >= at_ : attempt == at_);
  }

  const std::shared_ptr<MemoryResource> upstream_;
  mutable std::mutex mutex_;
  int64_t at_ = -1, attempt_count_ = 0;
  bool persistent_ = false;
};

}  // namespace

std::shared_ptr<FaultyMemoryResource> make_faulty_resource(std::shared_ptr<MemoryResource> upstream) {
  MEMSYS_EXPECT(upstream != nullptr, InputError, "faulty memory: no upstream given");
  return std::make_shared<CountingFaultyResource>(std::move(upstream));
}

}  // namespace memsys
