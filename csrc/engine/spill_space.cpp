// See spill_space.h.
#include "engine/spill_space.h"

#include <algorithm>

#include "base/bytes.h"

namespace memsys {

SpillSpace::SpillSpace(std::string folder, std::shared_ptr<ByteBudget> disk_budget, DirectMode direct)
    : folder_(std::move(folder)), disk_budget_(std::move(disk_budget)), direct_(direct) {}

SpillSpace::~SpillSpace() { disk_budget_->release(ranges_.capacity()); }

std::shared_ptr<File> SpillSpace::file() {
  const std::lock_guard growth(growth_mutex_);
  if (!file_) file_ = File::make_spill(folder_, direct_);
  return file_;
}

int64_t SpillSpace::try_allocate(int64_t bytes) {
  const std::lock_guard lock(ranges_mutex_);
  return ranges_.allocate(bytes);
}

void SpillSpace::grow(int64_t bytes) {
  const int64_t old_bytes = reserved_bytes();
  const auto extend = [&](int64_t more_bytes) {
    disk_budget_->reserve(more_bytes);
    try {
      file_->reserve(old_bytes + more_bytes);
    } catch (...) {
      disk_budget_->release(more_bytes);
      throw;
    }
    const std::lock_guard lock(ranges_mutex_);
    ranges_.grow(old_bytes + more_bytes);
  };
  const int64_t exact_bytes = align_up(bytes, kRangeAlignment);
  try {
    extend(std::max(exact_bytes, kSlabBytes));
  } catch (const Error&) {
    if (exact_bytes >= kSlabBytes) throw;
    extend(exact_bytes);  // a full disk or a small budget may still hold this one range
  }
}

int64_t SpillSpace::allocate(int64_t bytes) {
  int64_t offset = try_allocate(bytes);
  if (offset >= 0) return offset;
  file();
  const std::lock_guard growth(growth_mutex_);
  // Looped, because others may take what was freed or grown meanwhile.
  while ((offset = try_allocate(bytes)) < 0) grow(bytes);
  return offset;
}

void SpillSpace::free(int64_t offset) noexcept {
  const std::lock_guard lock(ranges_mutex_);
  ranges_.free(offset);
}

int64_t SpillSpace::used_bytes() const {
  const std::lock_guard lock(ranges_mutex_);
  return ranges_.used_bytes();
}

int64_t SpillSpace::reserved_bytes() const {
  const std::lock_guard lock(ranges_mutex_);
  return ranges_.capacity();
}

}  // namespace memsys
