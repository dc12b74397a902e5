// See row_order.h: one counting sort.
#include "plan/row_order.h"

#include <string>

#include "base/error.h"

namespace memsys {
namespace {

template <class Index>
std::vector<int32_t> order(std::span<const Index> index, int64_t row_count, int region_shift) {
  MEMSYS_EXPECT(static_cast<int64_t>(index.size()) <= kMaxOrderCount, InputError,
                "an order of " + std::to_string(index.size()) + " indices was asked for; give at most " +
                    std::to_string(kMaxOrderCount) + " at a time");
  const auto region_of = [=](Index one) {
    const auto row = static_cast<int64_t>(one);
    return static_cast<size_t>((row < 0 ? row + row_count : row) >> region_shift);
  };
  std::vector<int32_t> next(static_cast<size_t>(((row_count - 1) >> region_shift) + 2));
  for (const Index one : index) ++next[region_of(one) + 1];
  for (size_t region = 1; region < next.size(); ++region) next[region] += next[region - 1];
  std::vector<int32_t> positions(index.size());
  for (size_t at = 0; at < index.size(); ++at)
    positions[static_cast<size_t>(next[region_of(index[at])]++)] = static_cast<int32_t>(at);
  return positions;
}

}  // namespace

std::vector<int32_t> order_by_region(std::span<const int32_t> index, int64_t row_count, int region_shift) {
  return order(index, row_count, region_shift);
}
std::vector<int32_t> order_by_region(std::span<const int64_t> index, int64_t row_count, int region_shift) {
  return order(index, row_count, region_shift);
}

}  // namespace memsys
