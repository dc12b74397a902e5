// A team's loop: each piece once, whoever runs it (the caller, helpers, somebody else's pool), with several callers at
// once, under a seeded schedule, and when the wait for the helpers is ended by the failure of a foreign task.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "base/error.h"
#include "csrc/check.h"
#include "engine/row_team.h"

using namespace memsys;

namespace {

using Counts = std::vector<std::atomic<int64_t>>;

bool is_once_each(const Counts& counts) {
  return std::all_of(counts.begin(), counts.end(), [](const auto& count) { return count.load() == 1; });
}

// Every size of loop on every number of threads.
void check_all_sizes(RowTeam& team) {
  for (const int64_t piece_count : {0, 1, 2, 3, 7, 64, 1000})
    for (const int64_t thread_count : {-1, 0, 1, 2, 3, 8}) {
      Counts counts(static_cast<size_t>(piece_count));
      std::mutex mutex;
      std::set<std::thread::id> threads;
      team.run(piece_count, thread_count, [&](int64_t piece) {
        counts[static_cast<size_t>(piece)].fetch_add(1);
        const std::lock_guard lock(mutex);
        threads.insert(std::this_thread::get_id());
      });
      const std::lock_guard lock(mutex);
      CHECK(is_once_each(counts));
      CHECK(static_cast<int64_t>(threads.size()) <= std::max<int64_t>(thread_count, 1));
    }
}

// A pool as small as can be, which keeps what it was asked for.
std::atomic<int64_t> pool_calls{0}, pool_most_threads{0}, pool_flags{0};

void small_pool(void (*function)(void*), void* data, unsigned thread_count, unsigned flags) {
  pool_calls.fetch_add(1);
  pool_flags.fetch_or(flags);
  pool_most_threads = std::max<int64_t>(pool_most_threads, thread_count);
  std::vector<std::thread> threads;
  for (unsigned index = 1; index < thread_count; ++index) threads.emplace_back(function, data);
  function(data);
  for (std::thread& thread : threads) thread.join();
}

// May give fewer threads than asked for, as OpenMP does inside a parallel region.
void lone_pool(void (*function)(void*), void* data, unsigned, unsigned) { function(data); }

// Passes everything on; before the second wait, and any after it, it calls `on_second_wait`.
class WatchedExecutor final : public Executor {
 public:
  explicit WatchedExecutor(std::function<void()> on_second_wait) : on_second_wait_(std::move(on_second_wait)) {}
  int wait_count() const { return wait_count_; }
  int failing_post = -1;

  QueueId create_queue(const std::string& name) override { return inner_->create_queue(name); }
  void destroy_queue(QueueId queue) override { inner_->destroy_queue(queue); }
  void post(QueueId queue, Task task, Gate gate) override {
    if (post_count_++ == failing_post) throw std::runtime_error("no thread");
    inner_->post(queue, std::move(task), std::move(gate));
  }
  void wait_until(const std::function<bool()>& ready) override {
    if (++wait_count_ > 1) on_second_wait_();
    inner_->wait_until(ready);
  }
  bool wait_for(const std::function<bool()>& ready, int64_t timeout_us) override {
    return inner_->wait_for(ready, timeout_us);
  }
  void notify() override { inner_->notify(); }
  void drain() override { inner_->drain(); }
  int64_t step(int64_t count) override { return inner_->step(count); }
  int64_t now_us() const override { return inner_->now_us(); }
  bool is_seeded() const override { return inner_->is_seeded(); }
  uint64_t schedule_digest() const override { return inner_->schedule_digest(); }

 private:
  const std::shared_ptr<Executor> inner_ = make_threaded_executor();
  const std::function<void()> on_second_wait_;
  int wait_count_ = 0;
  std::atomic<int> post_count_{0};
};

}  // namespace

TEST(team_runs_each_piece_once) {
  for (const int64_t helper_count : {0, 1, 3}) {
    RowTeam team(make_threaded_executor(), helper_count);
    for (int round = 0; round < 5; ++round) check_all_sizes(team);
  }
}

TEST(team_runs_each_piece_once_under_a_seeded_executor) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto executor = make_seeded_executor(seed);
    RowTeam team(executor, 3);
    check_all_sizes(team);
    executor->drain();  // helpers that came too late find nothing to do
  }
}

TEST(team_uses_its_helpers) {
  const auto executor = make_threaded_executor();
  RowTeam team(executor, 2);
  std::atomic<int64_t> present_count{0};
  // Each piece waits for the others to begin, so that no thread can run two.
  team.run(3, 3, [&](int64_t) {
    for (present_count.fetch_add(1); present_count.load() < 3;) std::this_thread::yield();
  });
  CHECK_EQUAL(present_count.load(), 3);
}

TEST(team_serves_several_callers_at_once) {
  for (const ForeignPool pool : {ForeignPool{nullptr}, ForeignPool{small_pool}}) {
    RowTeam team(make_threaded_executor(), 2, pool);
    std::atomic<int64_t> wrong_count{0};
    std::vector<std::thread> callers;
    for (int64_t caller = 0; caller < 4; ++caller)
      callers.emplace_back([&, caller] {
        for (int64_t round = 0; round < 60; ++round) {
          Counts counts(static_cast<size_t>(1 + caller * 7 + round % 5));
          team.run(static_cast<int64_t>(counts.size()), 3,
                   [&](int64_t piece) { counts[static_cast<size_t>(piece)].fetch_add(1); });
          if (!is_once_each(counts)) wrong_count.fetch_add(1);
        }
      });
    for (std::thread& caller : callers) caller.join();
    CHECK_EQUAL(wrong_count.load(), 0);
  }
}

TEST(team_works_on_a_foreign_pool) {
  RowTeam team(nullptr, 3, small_pool);  // no executor: it would be missed if anything were posted
  check_all_sizes(team);
  pool_calls = 0;
  const auto ignore = [](int64_t) {};
  team.run(100, 1, ignore);
  team.run(1, 8, ignore);
  team.run(0, 8, ignore);
  CHECK_EQUAL(pool_calls.load(), 0);  // nothing to share
  for (const int64_t thread_count : {2, 3, 5}) {
    pool_most_threads = 0;
    team.run(100, thread_count, ignore);
    CHECK_EQUAL(pool_most_threads.load(), thread_count);
  }
  CHECK_EQUAL(pool_calls.load(), 3);
  pool_most_threads = 0;
  team.run(2, 8, ignore);
  CHECK_EQUAL(pool_most_threads.load(), 2);  // no more than pieces
  CHECK_EQUAL(pool_flags.load(), 0);
}

TEST(team_works_on_a_pool_that_gives_no_thread) {
  RowTeam team(nullptr, 0, lone_pool);
  check_all_sizes(team);
}

// The body lies on the caller's stack: run() must not leave while a helper is inside it, whatever a wait throws.
TEST(team_stays_until_its_pieces_are_done_though_a_foreign_task_fails) {
  std::atomic<bool> helper_began{false}, may_end{false};
  const auto executor = std::make_shared<WatchedExecutor>([&] { may_end = true; });
  const QueueId foreign = executor->create_queue("foreign");
  {
    RowTeam team(executor, 1);
    std::atomic<int64_t> done_count{0};
    const std::thread::id caller = std::this_thread::get_id();
    const auto body = [&](int64_t) {
      if (std::this_thread::get_id() == caller) {
        while (!helper_began.load()) std::this_thread::yield();
        executor->post(foreign, [] { throw std::runtime_error("foreign"); }, {});
      } else {
        helper_began = true;
        while (!may_end.load()) std::this_thread::yield();
      }
      done_count.fetch_add(1);
    };
    std::string message;
    try {
      team.run(2, 2, body);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    const int64_t done_at_return = done_count.load();
    may_end = true;
    executor->drain();
    CHECK_EQUAL(done_at_return, 2);
    CHECK_EQUAL(message, std::string("foreign"));  // and it is not swallowed
    CHECK_EQUAL(executor->wait_count(), 2);
    check_all_sizes(team);  // and the team works on
  }
  executor->destroy_queue(foreign);
}

TEST(team_does_without_a_helper_that_cannot_start) {
  const auto executor = std::make_shared<WatchedExecutor>([] {});
  executor->failing_post = 1;
  RowTeam team(executor, 3);
  std::vector<std::atomic<int>> run_count(1000);
  team.run(1000, 4, [&](int64_t piece) { run_count[static_cast<size_t>(piece)].fetch_add(1); });
  for (const auto& count : run_count) CHECK_EQUAL(count.load(), 1);
}

TEST(team_refuses_a_negative_number_of_helpers) { CHECK_THROWS(RowTeam(make_threaded_executor(), -1), InputError); }
