// See byte_budget.h.
#include "memory/byte_budget.h"

#include <algorithm>
#include <limits>

#include "base/bytes.h"

namespace memsys {

bool ByteBudget::try_reserve(int64_t bytes) noexcept {
  int64_t used = used_bytes_.load();
  do {
    if (limit_bytes_ >= 0 && used > limit_bytes_ - bytes) return false;
  } while (!used_bytes_.compare_exchange_weak(used, used + bytes));
  int64_t peak = peak_bytes_.load();
  while (peak < used + bytes && !peak_bytes_.compare_exchange_weak(peak, used + bytes)) {
  }
  if (watch_) watch_(used + bytes);
  return true;
}

void ByteBudget::reserve(int64_t bytes) {
  MEMSYS_EXPECT(try_reserve(bytes), BudgetError,
                name_ + ": wanted " + format_bytes(bytes) + ", but " + format_bytes(used_bytes()) + " of " +
                    format_bytes(limit_bytes_) + " are in use; raise " + name_ + " or make the batch smaller");
}

void ByteBudget::release(int64_t bytes) noexcept {
  const int64_t used = used_bytes_ -= bytes;
  if (watch_) watch_(used);
}

int64_t ByteBudget::left_bytes() const {
  if (limit_bytes_ < 0) return std::numeric_limits<int64_t>::max() / 2;
  return std::max<int64_t>(0, limit_bytes_ - used_bytes_);
}

}  // namespace memsys
