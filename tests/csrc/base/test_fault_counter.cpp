// Faults strike where they were told to: the k-th attempt, once or from then on; and a thread that does not start is an
// error of the post that wanted it, after which the queue goes on.
#include <atomic>
#include <memory>

#include "base/error.h"
#include "base/executor.h"
#include "base/fault_counter.h"
#include "csrc/check.h"

using namespace memsys;

namespace {

int failures_in(FaultCounter& counter, int attempts) {
  int failures = 0;
  for (int index = 0; index < attempts; ++index) failures += counter.next_fails();
  return failures;
}

}  // namespace

TEST(a_counter_fails_the_kth_attempt_once_or_from_then_on) {
  FaultCounter counter;
  CHECK_EQUAL(failures_in(counter, 5), 0);
  CHECK_EQUAL(counter.attempt_count(), int64_t{5});
  counter.arm(2, FaultSpan::once);
  CHECK_EQUAL(counter.attempt_count(), int64_t{0});
  CHECK_EQUAL(failures_in(counter, 2), 0);
  CHECK(counter.next_fails());
  CHECK_EQUAL(failures_in(counter, 5), 0);
  counter.arm(2, FaultSpan::persistent);
  CHECK_EQUAL(failures_in(counter, 7), 5);
  counter.arm(-1, FaultSpan::persistent);
  CHECK_EQUAL(failures_in(counter, 7), 0);
}

TEST(a_thread_that_does_not_start_is_told_and_the_next_post_starts_it) {
  const auto faults = std::make_shared<FaultCounter>();
  const auto executor = make_threaded_executor(faults);
  std::atomic<int> ran{0};
  const QueueId first = executor->create_queue("first"), second = executor->create_queue("second");
  faults->arm(1, FaultSpan::once);
  executor->post(first, [&] { ++ran; });
  CHECK_THROWS(executor->post(second, [&] { ran += 100; }), Error);
  executor->post(second, [&] { ++ran; });
  executor->post(first, [&] { ++ran; });
  executor->drain();
  CHECK_EQUAL(ran.load(), 3);
  CHECK_EQUAL(faults->attempt_count(), int64_t{3});
}
