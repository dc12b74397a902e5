// See lifetime_placer.h.
#include "plan/lifetime_placer.h"

#include <algorithm>
#include <limits>

#include "plan/offset_allocator.h"

namespace memsys {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

struct Placed {
  int64_t offset = 0, top = 0, begin = 0, end = 0;
};

// The smallest gap of at least `wanted.bytes` between what is placed in the lifetime of `wanted`; above all if none.
int64_t tightest_gap(const std::vector<Placed>& placed, const LifetimeRequest& wanted) {
  int64_t best = -1, best_bytes = std::numeric_limits<int64_t>::max(), height = 0;
  for (const Placed& one : placed) {
    if (one.begin >= wanted.end || wanted.begin >= one.end) continue;
    const int64_t gap = one.offset - height;
    if (gap >= wanted.bytes && gap < best_bytes) {
      best = height;
      best_bytes = gap;
      if (gap == wanted.bytes) return best;
    }
    height = std::max(height, one.top);
  }
  return best >= 0 ? best : height;
}

// The greatest height over ranges of positions, and raising a range to a height: a tree of maxima whose raises stay
// at the nodes that they cover whole.
class Heights {
 public:
  explicit Heights(int64_t position_count) : size_(1) {
    while (size_ < position_count) size_ *= 2;
    greatest_.assign(at(2 * size_), 0);
    raised_.assign(at(2 * size_), 0);
  }
  int64_t over(int64_t begin, int64_t end) const { return over(1, 0, size_, begin, end); }
  void raise(int64_t begin, int64_t end, int64_t height) { raise(1, 0, size_, {height, begin, end}); }

 private:
  int64_t over(int64_t node, int64_t low, int64_t high, int64_t begin, int64_t end) const {
    if (begin <= low && high <= end) return greatest_[at(node)];
    const int64_t middle = (low + high) / 2;
    int64_t found = raised_[at(node)];
    if (begin < middle) found = std::max(found, over(2 * node, low, middle, begin, end));
    if (end > middle) found = std::max(found, over(2 * node + 1, middle, high, begin, end));
    return found;
  }
  void raise(int64_t node, int64_t low, int64_t high, const LifetimeRequest& to) {
    greatest_[at(node)] = std::max(greatest_[at(node)], to.bytes);
    if (to.begin <= low && high <= to.end) {
      raised_[at(node)] = std::max(raised_[at(node)], to.bytes);
      return;
    }
    const int64_t middle = (low + high) / 2;
    if (to.begin < middle) raise(2 * node, low, middle, to);
    if (to.end > middle) raise(2 * node + 1, middle, high, to);
  }

  int64_t size_;
  std::vector<int64_t> greatest_, raised_;
};

}  // namespace

Placement place_in_gaps(const LifetimeProblem& problem, std::span<const int64_t> order, int64_t ceiling,
                        int64_t& work) {
  Placement result{std::vector<int64_t>(problem.requests.size(), 0), 0, -1};
  std::vector<Placed> placed;  // by offset
  placed.reserve(order.size());
  for (const int64_t index : order) {
    const LifetimeRequest& wanted = problem.requests[at(index)];
    const int64_t offset = tightest_gap(placed, wanted);
    work += static_cast<int64_t>(placed.size()) + 1;
    if (offset + wanted.bytes > ceiling) {
      result.failed = index;
      return result;
    }
    const Placed one{offset, offset + wanted.bytes, wanted.begin, wanted.end};
    const auto below = [](const Placed& left, const Placed& right) { return left.offset < right.offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), one, below), one);
    result.offsets[at(index)] = offset;
    result.peak_bytes = std::max(result.peak_bytes, one.top);
  }
  return result;
}

Placement place_on_top(const LifetimeProblem& problem, std::span<const int64_t> order) {
  Placement result{std::vector<int64_t>(problem.requests.size(), 0), 0, -1};
  Heights heights(problem.position_count);
  for (const int64_t index : order) {
    const LifetimeRequest& wanted = problem.requests[at(index)];
    const int64_t offset = heights.over(wanted.begin, wanted.end);
    heights.raise(wanted.begin, wanted.end, offset + wanted.bytes);
    result.offsets[at(index)] = offset;
    result.peak_bytes = std::max(result.peak_bytes, offset + wanted.bytes);
  }
  return result;
}

Placement place_online(const LifetimeProblem& problem) {
  Placement result{std::vector<int64_t>(problem.requests.size(), 0), 0, -1};
  struct Event {
    int64_t position = 0;
    enum class Kind { release, request } kind = Kind::request;  // releases come first: lifetimes are half-open
    int64_t index = 0;
    auto operator<=>(const Event&) const = default;
  };
  std::vector<Event> events;
  for (size_t index = 0; index < problem.requests.size(); ++index) {
    events.push_back({problem.requests[index].begin, Event::Kind::request, static_cast<int64_t>(index)});
    events.push_back({problem.requests[index].end, Event::Kind::release, static_cast<int64_t>(index)});
  }
  std::sort(events.begin(), events.end());
  // It grows only where nothing fits: room that was never used would otherwise be its loosest hole.
  OffsetAllocator allocator(0, 1);
  for (const Event& event : events) {
    int64_t& offset = result.offsets[at(event.index)];
    if (event.kind == Event::Kind::release) {
      allocator.free(offset);
      continue;
    }
    const int64_t bytes = problem.requests[at(event.index)].bytes;
    while ((offset = allocator.allocate(bytes)) < 0)
      allocator.grow(allocator.capacity() + bytes - allocator.tail_bytes());
  }
  result.peak_bytes = allocator.high_water();
  return result;
}

}  // namespace memsys
