// Addresses for requests whose lifetimes are known beforehand (dynamic storage allocation): offsets in one slab, such
// that what is alive together does not overlap and the slab is small. The least slab is NP-hard to find; the most
// that is alive at once bounds it from below, and the plan says how far from that bound it stayed.
//
// Requests are placed one by one, in several orders, each into the tightest gap that the requests placed before leave
// it over its whole life. The best order is then improved: a placement with less room is tried, whatever did not fit
// is moved forward in the order, and so on, within a fixed amount of work.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace memsys {

// Alive in the half-open range [begin, end) of positions.
struct LifetimeRequest {
  int64_t bytes = 0, begin = 0, end = 0;
};

struct LifetimePlanOptions {
  int64_t alignment = 512;           // of offsets and sizes; a power of two
  int64_t work_limit = 300'000'000;  // comparisons, all orders and the search together: about half a second
};

struct LifetimePlan {
  std::vector<int64_t> offsets;  // of each request, in the order given
  int64_t peak_bytes = 0;        // the slab's size
  int64_t bound_bytes = 0;       // no slab can be smaller
  std::string order;             // which order gave it
  int64_t round_count = 0;       // placements that the search tried
};

// Throws InputError for a request without bytes or without a life.
LifetimePlan plan_lifetimes(std::span<const LifetimeRequest> requests, const LifetimePlanOptions& options = {});

// The most bytes alive at once, each request rounded to `alignment`.
int64_t live_peak(std::span<const LifetimeRequest> requests, int64_t alignment = 1);

// Throws Error if two requests alive at once overlap, or an offset is not aligned, and InputError for a request without
// bytes or without a life, or an alignment that is no power of two; gives back the slab's size.
int64_t check_placement(std::span<const LifetimeRequest> requests, std::span<const int64_t> offsets, int64_t alignment);

}  // namespace memsys
