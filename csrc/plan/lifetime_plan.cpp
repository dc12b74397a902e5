// See lifetime_plan.h.
#include "plan/lifetime_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <tuple>

#include "base/bytes.h"
#include "base/error.h"
#include "plan/lifetime_placer.h"

namespace memsys {
namespace {

constexpr int64_t kNoCeiling = std::numeric_limits<int64_t>::max();

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Sizes rounded, positions renumbered without gaps: the same overlaps in fewer of them.
void expect_power_of_two(int64_t alignment) {
  MEMSYS_EXPECT(alignment > 0 && (alignment & (alignment - 1)) == 0, InputError,
                "lifetime plan: alignment " + std::to_string(alignment) + " is not a power of two");
}

LifetimeProblem normalized(std::span<const LifetimeRequest> requests, int64_t alignment) {
  expect_power_of_two(alignment);
  LifetimeProblem problem;
  std::vector<int64_t> positions;
  int64_t total = 0;
  for (size_t index = 0; index < requests.size(); ++index) {
    const LifetimeRequest& request = requests[index];
    MEMSYS_EXPECT(request.bytes > 0 && request.begin < request.end, InputError,
                  "lifetime plan: request " + std::to_string(index) + " wants " + std::to_string(request.bytes) +
                      " bytes in [" + std::to_string(request.begin) + ", " + std::to_string(request.end) +
                      "); leave out what has no bytes or no life");
    total = checked_add(total, align_up(checked_add(request.bytes, alignment - 1) - (alignment - 1), alignment));
    positions.push_back(request.begin);
    positions.push_back(request.end);
  }
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  const auto number_of = [&](int64_t position) {
    return std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
  };
  for (const LifetimeRequest& request : requests)
    problem.requests.push_back({align_up(request.bytes, alignment), number_of(request.begin), number_of(request.end)});
  problem.position_count = static_cast<int64_t>(positions.size());
  return problem;
}

// The first position at which the most is alive, and how much that is.
std::pair<int64_t, int64_t> fullest_position(const LifetimeProblem& problem) {
  std::vector<int64_t> changes(at(problem.position_count) + 1, 0);
  for (const LifetimeRequest& request : problem.requests) {
    changes[at(request.begin)] += request.bytes;
    changes[at(request.end)] -= request.bytes;
  }
  int64_t alive = 0, peak = 0, fullest = 0;
  for (int64_t position = 0; position < problem.position_count; ++position) {
    alive += changes[at(position)];
    if (alive > peak) peak = alive, fullest = position;
  }
  return {fullest, peak};
}

struct Order {
  const char* name;
  // Ascending by this key; the index breaks ties, so that a plan depends on the requests alone.
  std::tuple<int64_t, int64_t, int64_t> (*key)(const LifetimeRequest&, int64_t fullest);
};

constexpr int64_t life(const LifetimeRequest& request) { return request.end - request.begin; }
constexpr bool spans(const LifetimeRequest& request, int64_t position) {
  return request.begin <= position && position < request.end;
}

constexpr std::array<Order, 6> kOrders{{
    {"size", [](const LifetimeRequest& r, int64_t) { return std::tuple(-r.bytes, -life(r), r.begin); }},
    {"lifetime", [](const LifetimeRequest& r, int64_t) { return std::tuple(-life(r), -r.bytes, r.begin); }},
    {"area",
     [](const LifetimeRequest& r, int64_t) {
       // A product of two large numbers: halved together until it fits.
       return std::tuple(-(r.bytes >> 20 > 0 ? (r.bytes >> 9) * life(r) : (r.bytes * life(r)) >> 9), -r.bytes, r.begin);
     }},
    {"begin", [](const LifetimeRequest& r, int64_t) { return std::tuple(r.begin, -r.end, -r.bytes); }},
    {"end", [](const LifetimeRequest& r, int64_t) { return std::tuple(-r.end, r.begin, -r.bytes); }},
    // What is alive at the fullest position has to lie without any gap: it comes first, the longest lives below.
    {"fullest",
     [](const LifetimeRequest& r, int64_t fullest) {
       return spans(r, fullest) ? std::tuple(int64_t{0}, -life(r), -r.bytes)
                                : std::tuple(int64_t{1}, -r.bytes, -life(r));
     }},
}};

std::vector<int64_t> sorted_by(const Order& order, const LifetimeProblem& problem, int64_t fullest) {
  std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>> keys;
  for (size_t index = 0; index < problem.requests.size(); ++index)
    keys.push_back(
        std::tuple_cat(order.key(problem.requests[index], fullest), std::tuple(static_cast<int64_t>(index))));
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> indices;
  for (const auto& key : keys) indices.push_back(std::get<3>(key));
  return indices;
}

class Search {
 public:
  Search(const LifetimeProblem& problem, const LifetimePlanOptions& options)
      : problem_(problem), options_(options), best_{{}, kNoCeiling, -1} {
    std::tie(fullest_, bound_) = fullest_position(problem);
  }

  LifetimePlan run() {
    const auto count = static_cast<int64_t>(problem_.requests.size());
    const bool has_gaps = count * count / 2 * static_cast<int64_t>(kOrders.size()) <= options_.work_limit;
    for (const Order& order : kOrders) try_order(order, has_gaps);
    if (!is_tight()) keep_if_better(place_online(problem_), "online", {});
    if (!has_gaps && !is_tight() && count * count / 2 <= options_.work_limit) try_gaps(kOrders.front());
    improve();
    return {std::move(best_.offsets), best_.peak_bytes, bound_, name_, round_count_};
  }

 private:
  bool is_tight() const { return best_.peak_bytes <= bound_; }

  void try_order(const Order& order, bool has_gaps) {
    if (is_tight()) return;
    if (has_gaps) return try_gaps(order);
    std::vector<int64_t> indices = sorted_by(order, problem_, fullest_);
    keep_if_better(place_on_top(problem_, indices), std::string(order.name) + " on top", {});
  }

  void try_gaps(const Order& order) {
    std::vector<int64_t> indices = sorted_by(order, problem_, fullest_);
    Placement found = place_in_gaps(problem_, indices, kNoCeiling, work_);
    keep_if_better(std::move(found), order.name, std::move(indices));
  }

  void keep_if_better(Placement found, const std::string& name, std::vector<int64_t> order) {
    if (found.failed >= 0 || found.peak_bytes >= best_.peak_bytes) return;
    best_ = std::move(found);
    name_ = name;
    if (!order.empty()) order_ = std::move(order);
  }

  // Whatever does not fit below the ceiling goes further forward in the order, half of its way or all of it.
  void improve() {
    if (order_.empty()) return;
    std::vector<int64_t> order = order_;
    std::mt19937_64 random(1);
    int64_t ceiling = next_ceiling();
    while (!is_tight() && work_ < options_.work_limit) {
      ++round_count_;
      Placement found = place_in_gaps(problem_, order, ceiling, work_);
      if (found.failed < 0) {
        keep_if_better(std::move(found), "search", order);
        ceiling = next_ceiling();
        continue;
      }
      const auto place = std::find(order.begin(), order.end(), found.failed);
      const auto way = static_cast<uint64_t>(place - order.begin());
      const auto back = static_cast<std::ptrdiff_t>(random() % 2 == 0 ? way : random() % (way + 1));
      std::rotate(place - back, place, place + 1);
      work_ += static_cast<int64_t>(way);
    }
  }

  // A quarter of the way to the bound at a time; near it, one unit of alignment.
  int64_t next_ceiling() const {
    const int64_t room = best_.peak_bytes - bound_;
    return room <= 16 * options_.alignment ? best_.peak_bytes - std::min(room, options_.alignment)
                                           : best_.peak_bytes - room / 4;
  }

  const LifetimeProblem& problem_;
  const LifetimePlanOptions& options_;
  int64_t fullest_ = 0, bound_ = 0, work_ = 0, round_count_ = 0;
  Placement best_;
  std::string name_;
  std::vector<int64_t> order_;  // of the best placement in gaps
};

}  // namespace

LifetimePlan plan_lifetimes(std::span<const LifetimeRequest> requests, const LifetimePlanOptions& options) {
  const LifetimeProblem problem = normalized(requests, options.alignment);
  if (requests.empty()) return {};
  LifetimePlan plan = Search(problem, options).run();
  check_placement(requests, plan.offsets, options.alignment);
  return plan;
}

int64_t live_peak(std::span<const LifetimeRequest> requests, int64_t alignment) {
  return fullest_position(normalized(requests, alignment)).second;
}

int64_t check_placement(std::span<const LifetimeRequest> requests, std::span<const int64_t> offsets,
                        int64_t alignment) {
  MEMSYS_EXPECT(requests.size() == offsets.size(), InputError,
                "lifetime plan: " + std::to_string(offsets.size()) + " offsets for " + std::to_string(requests.size()) +
                    " requests");
  expect_power_of_two(alignment);
  std::vector<std::tuple<int64_t, int, size_t>> events;  // releases before requests: lifetimes are half-open
  for (size_t index = 0; index < requests.size(); ++index) {
    MEMSYS_EXPECT(requests[index].bytes > 0 && requests[index].begin < requests[index].end, InputError,
                  "lifetime plan: request " + std::to_string(index) + " has no bytes or no life");
    events.emplace_back(requests[index].begin, 1, index);
    events.emplace_back(requests[index].end, 0, index);
  }
  std::sort(events.begin(), events.end());
  std::map<int64_t, int64_t> alive;  // offset -> end
  int64_t peak = 0;
  for (const auto& [position, kind, index] : events) {
    const int64_t begin = offsets[index], end = checked_add(begin, requests[index].bytes);
    if (kind == 0) {
      alive.erase(begin);
      continue;
    }
    const auto after = alive.lower_bound(begin);
    const bool overlaps =
        (after != alive.end() && after->first < end) || (after != alive.begin() && std::prev(after)->second > begin);
    MEMSYS_EXPECT(!overlaps && begin >= 0 && begin % alignment == 0, Error,
                  "lifetime plan: request " + std::to_string(index) + " at offset " + std::to_string(begin) +
                      " overlaps another that is alive, or is not aligned");
    alive.emplace(begin, end);
    peak = std::max(peak, end);
  }
  return peak;
}

}  // namespace memsys
