// In which order to visit a long index: by region of the table, so that each region's pages are looked up once and its
// rows come from open DRAM rows, while within a region the order stays as given (so equal indices stay in order).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace memsys {

inline constexpr int64_t kMaxOrderCount = (int64_t{1} << 31) - 1;

// Positions of `index`, sorted by index >> region_shift and, within one region, as given. Negative indices count from
// row_count, and every index lies in [-row_count, row_count). At most kMaxOrderCount of them.
std::vector<int32_t> order_by_region(std::span<const int32_t> index, int64_t row_count, int region_shift);
std::vector<int32_t> order_by_region(std::span<const int64_t> index, int64_t row_count, int region_shift);

}  // namespace memsys
