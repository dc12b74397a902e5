// Plans of addresses: never an overlap, never below the bound, exact where the best is known, quick for many requests.
#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "csrc/check.h"
#include "plan/lifetime_placer.h"
#include "plan/lifetime_plan.h"

using namespace memsys;

namespace {

int64_t below(std::mt19937_64& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

std::vector<LifetimeRequest> random_requests(std::mt19937_64& random, int64_t count, int64_t positions, int64_t bytes) {
  std::vector<LifetimeRequest> requests;
  for (int64_t index = 0; index < count; ++index) {
    const int64_t begin = below(random, positions);
    requests.push_back({1 + below(random, bytes), begin, begin + 1 + below(random, positions / 2)});
  }
  return requests;
}

// A step of a deep model: what forward saves dies in reverse order, and short-lived results come in between.
std::vector<LifetimeRequest> step_of_layers(std::mt19937_64& random, int64_t layer_count) {
  std::vector<LifetimeRequest> requests;
  const int64_t length = 16 * layer_count;
  for (int64_t layer = 0; layer < layer_count; ++layer) {
    const int64_t begin = 8 * layer, end = length - 8 * layer;
    for (const int64_t wait : {0, 2, 4}) requests.push_back({(1 + below(random, 64)) << 12, begin + wait, end - wait});
    for (int64_t one = 0; one < 6; ++one)
      requests.push_back({(1 + below(random, 256)) << 10, begin + one, begin + one + 2});
    for (int64_t one = 0; one < 6; ++one)
      requests.push_back({(1 + below(random, 256)) << 10, end - one - 2, end - one});
  }
  return requests;
}

// The least slab there is, by trying all orders, each request as low as it fits: some order gives the optimum.
int64_t least_slab(const std::vector<LifetimeRequest>& requests) {
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  int64_t best = -1;
  do {
    std::vector<int64_t> offsets(requests.size(), -1);
    int64_t peak = 0;
    for (const size_t index : order) {
      int64_t offset = 0;
      for (bool moved = true; moved;) {
        moved = false;
        for (size_t other = 0; other < requests.size(); ++other) {
          if (offsets[other] < 0 || requests[other].begin >= requests[index].end ||
              requests[index].begin >= requests[other].end)
            continue;
          if (offsets[other] < offset + requests[index].bytes && offset < offsets[other] + requests[other].bytes) {
            offset = offsets[other] + requests[other].bytes;
            moved = true;
          }
        }
      }
      offsets[index] = offset;
      peak = std::max(peak, offset + requests[index].bytes);
    }
    if (best < 0 || peak < best) best = peak;
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

void check_plan(const std::vector<LifetimeRequest>& requests, const LifetimePlan& plan, int64_t alignment) {
  CHECK_EQUAL(check_placement(requests, plan.offsets, alignment) <= plan.peak_bytes, true);
  CHECK_EQUAL(plan.bound_bytes, live_peak(requests, alignment));
  CHECK(plan.peak_bytes >= plan.bound_bytes);
  CHECK_EQUAL(plan.peak_bytes % alignment, 0);
}

}  // namespace

TEST(an_empty_step_needs_nothing) {
  CHECK_EQUAL(plan_lifetimes({}).peak_bytes, 0);
  CHECK_EQUAL(live_peak({}), 0);
}

TEST(half_open_lifetimes_may_share_an_address) {
  const std::vector<LifetimeRequest> requests{{512, 0, 1}, {512, 1, 2}};
  const LifetimePlan plan = plan_lifetimes(requests);
  CHECK_EQUAL(plan.peak_bytes, 512);
  CHECK_EQUAL(plan.offsets[0], plan.offsets[1]);
}

TEST(requests_that_make_no_sense_are_refused) {
  CHECK_THROWS(plan_lifetimes(std::vector<LifetimeRequest>{{0, 0, 1}}), InputError);
  CHECK_THROWS(plan_lifetimes(std::vector<LifetimeRequest>{{1, 1, 1}}), InputError);
  CHECK_THROWS(plan_lifetimes(std::vector<LifetimeRequest>{{1, 0, 1}}, {.alignment = 3}), InputError);
  const int64_t most = std::numeric_limits<int64_t>::max();
  CHECK_THROWS(plan_lifetimes(std::vector<LifetimeRequest>{{most, 0, 1}}), InputError);
  CHECK_THROWS(plan_lifetimes(std::vector<LifetimeRequest>{{most / 2, 0, 1}, {most / 2 + 9, 5, 6}}), InputError);
}

TEST(overlaps_are_found) {
  const std::vector<LifetimeRequest> requests{{100, 0, 5}, {100, 2, 3}, {100, 4, 9}};
  CHECK_EQUAL(check_placement(requests, std::vector<int64_t>{0, 100, 100}, 1), 200);
  CHECK_THROWS(check_placement(requests, std::vector<int64_t>{0, 99, 100}, 1), Error);
  CHECK_THROWS(check_placement(requests, std::vector<int64_t>{50, 150, 0}, 1), Error);
  CHECK_THROWS(check_placement(requests, std::vector<int64_t>{0, 100, 130}, 4), Error);
  CHECK_THROWS(check_placement(requests, std::vector<int64_t>{0, 100}, 1), InputError);
}

TEST(random_requests_never_overlap) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    const auto requests = random_requests(random, 1 + below(random, 60), 2 + below(random, 40), 5000);
    const int64_t alignment = int64_t{1} << below(random, 10);
    check_plan(requests, plan_lifetimes(requests, {.alignment = alignment, .work_limit = 200'000}), alignment);
  }
}

TEST(small_problems_are_solved_to_the_least_slab) {
  int64_t loose_count = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    const auto requests = random_requests(random, 7, 8, 10);
    const int64_t least = least_slab(requests);
    const LifetimePlan plan = plan_lifetimes(requests, {.alignment = 1, .work_limit = 200'000});
    check_plan(requests, plan, 1);
    CHECK(plan.peak_bytes >= least);
    loose_count += plan.peak_bytes > least ? 1 : 0;
  }
  CHECK_EQUAL(loose_count, 0);
}

TEST(every_way_of_placing_is_valid) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    std::mt19937_64 random(seed);
    LifetimeProblem problem{random_requests(random, 40, 60, 3000), 100};
    std::vector<int64_t> order(problem.requests.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random);
    int64_t work = 0;
    for (const Placement& found :
         {place_in_gaps(problem, order, int64_t{1} << 40, work), place_on_top(problem, order), place_online(problem)}) {
      CHECK_EQUAL(found.failed, -1);
      CHECK_EQUAL(check_placement(problem.requests, found.offsets, 1), found.peak_bytes);
    }
    const Placement cut = place_in_gaps(problem, order, live_peak(problem.requests) - 1, work);
    CHECK(cut.failed >= 0);
    CHECK(work >= static_cast<int64_t>(order.size()));
  }
}

TEST(a_step_of_layers_comes_within_two_percent) {
  for (const int64_t layer_count : {1, 4, 12, 48}) {
    std::mt19937_64 random(static_cast<uint64_t>(layer_count));
    const auto requests = step_of_layers(random, layer_count);
    const LifetimePlan plan = plan_lifetimes(requests);
    check_plan(requests, plan, 512);
    std::printf("    %lld layers: %.4f of the bound, by %s\n", static_cast<long long>(layer_count),
                static_cast<double>(plan.peak_bytes) / static_cast<double>(plan.bound_bytes), plan.order.c_str());
    CHECK(plan.peak_bytes * 100 <= plan.bound_bytes * 102);
  }
}

TEST(the_same_requests_get_the_same_plan) {
  std::mt19937_64 random(7);
  const auto requests = random_requests(random, 200, 90, 100000);
  const LifetimePlan first = plan_lifetimes(requests), second = plan_lifetimes(requests);
  CHECK(first.offsets == second.offsets);
  CHECK_EQUAL(first.order, second.order);
}

TEST(a_hundred_thousand_requests_take_seconds) {
  std::mt19937_64 random(3);
  const auto requests = step_of_layers(random, 6700);
  CHECK(requests.size() > 100'000);
  const auto begin = std::chrono::steady_clock::now();
  const LifetimePlan plan = plan_lifetimes(requests);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  check_plan(requests, plan, 512);
  std::printf("    %zu requests in %.1f s: %.4f of the bound, by %s\n", requests.size(), seconds,
              static_cast<double>(plan.peak_bytes) / static_cast<double>(plan.bound_bytes), plan.order.c_str());
  CHECK(seconds < 60);
}

// Found by fuzzing plan files: an alignment of 0 ended the process.
TEST(check_placement_refuses_what_makes_no_sense) {
  const std::vector<LifetimeRequest> one{{512, 0, 1}};
  const std::vector<int64_t> offset{0};
  CHECK_EQUAL(check_placement(one, offset, 512), 512);
  for (const int64_t alignment : {0, -1, 3}) CHECK_THROWS(check_placement(one, offset, alignment), InputError);
  CHECK_THROWS(check_placement(one, std::vector<int64_t>{}, 512), InputError);
  CHECK_THROWS(check_placement(one, std::vector<int64_t>{-512}, 512), Error);
  CHECK_THROWS(check_placement(one, std::vector<int64_t>{1}, 512), Error);
  CHECK_THROWS(check_placement(one, std::vector<int64_t>{std::numeric_limits<int64_t>::max() - 511}, 1), InputError);
  for (const LifetimeRequest& bad : {LifetimeRequest{0, 0, 1}, {-512, 0, 1}, {512, 1, 1}, {512, 2, 1}})
    CHECK_THROWS(check_placement(std::vector<LifetimeRequest>{bad}, offset, 512), InputError);
}
