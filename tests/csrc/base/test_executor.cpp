// The contract of executor.h, run on both executors.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/executor.h"
#include "csrc/check.h"

namespace {

using namespace memsys;

void on_both(const std::function<void(Executor&)>& body) {
  body(*make_threaded_executor());
  for (uint64_t seed = 0; seed < 20; ++seed) body(*make_seeded_executor(seed));
}

Gate flag_gate(const std::atomic<bool>& flag) {
  return {[&flag] { return flag.load(); }, {}};
}

struct Schedule {
  std::string order;  // in which tasks of several queues ran
  uint64_t digest = 0;
};

Schedule schedule_of(uint64_t seed) {
  const auto executor = make_seeded_executor(seed);
  std::string order;
  for (char name = 'a'; name < 'e'; ++name) {
    const QueueId queue = executor->create_queue(std::string(1, name));
    for (int count = 0; count < 5; ++count) executor->post(queue, [&order, name] { order += name; });
  }
  executor->drain();
  return {order, executor->schedule_digest()};
}

}  // namespace

TEST(a_queue_runs_its_tasks_in_order) {
  on_both([](Executor& executor) {
    const QueueId queues[] = {executor.create_queue("one"), executor.create_queue("two")};
    std::vector<int> ran[2];
    for (int value = 0; value < 100; ++value)
      for (int index = 0; index < 2; ++index)
        executor.post(queues[index], [&list = ran[index], value] { list.push_back(value); });
    executor.drain();
    for (const auto& list : ran) {
      CHECK_EQUAL(list.size(), size_t{100});
      for (int value = 0; value < 100; ++value) CHECK_EQUAL(list[static_cast<size_t>(value)], value);
    }
  });
}

TEST(a_gate_holds_back_its_own_queue_only) {
  on_both([](Executor& executor) {
    const QueueId held = executor.create_queue("held"), free = executor.create_queue("free");
    std::atomic<bool> open{false}, held_ran{false}, behind_ran{false}, free_ran{false};
    executor.post(
        held, [&] { held_ran = true; }, flag_gate(open));
    executor.post(held, [&] { behind_ran = true; });
    executor.post(free, [&] {
      free_ran = true;
      executor.notify();
    });
    executor.wait_until([&] { return free_ran.load(); });
    CHECK(!executor.wait_for([&] { return held_ran.load() || behind_ran.load(); }, 2000));
    open = true;
    executor.notify();
    executor.drain();
    CHECK(held_ran && behind_ran);
  });
}

TEST(a_task_opens_the_gate_of_another_queue) {
  on_both([](Executor& executor) {
    const QueueId first = executor.create_queue("first"), second = executor.create_queue("second");
    for (int round = 0; round < 50; ++round) {
      std::atomic<bool> opened{false}, done{false};
      executor.post(
          second,
          [&] {
            done = true;
            executor.notify();
          },
          flag_gate(opened));
      executor.post(first, [&] {
        opened = true;
        executor.notify();
      });
      executor.wait_until([&] { return done.load(); });
      executor.drain();
      CHECK(opened && done);
    }
  });
}

TEST(a_blocking_gate_is_waited_for) {
  on_both([](Executor& executor) {
    std::atomic<bool> ready{false};
    std::atomic<int> blocked{0};
    bool ran_after = false;
    const Gate gate{[&] { return ready.load(); },
                    [&] {
                      ++blocked;
                      ready = true;
                    }};
    const QueueId queue = executor.create_queue("gpu");
    executor.post(
        queue, [&] { ran_after = ready; }, gate);
    executor.drain();
    CHECK(ran_after);
    CHECK_EQUAL(blocked.load(), 1);
  });
}

TEST(a_waiter_wakes_when_notified_from_another_thread) {
  const auto executor = make_threaded_executor();
  std::atomic<bool> ready{false};
  std::thread other([&] {
    ready = true;
    executor->notify();
  });
  executor->wait_until([&] { return ready.load(); });
  other.join();
  CHECK(ready);
}

TEST(what_a_task_throws_ends_the_next_wait) {
  on_both([](Executor& executor) {
    const QueueId queue = executor.create_queue("faulty");
    std::atomic<bool> never{false};
    executor.post(queue, [] { throw std::runtime_error("broken"); });
    CHECK_THROWS(executor.wait_until([&] { return never.load(); }), std::runtime_error);
    executor.post(queue, [] { throw std::runtime_error("broken again"); });
    CHECK_THROWS(executor.drain(), std::runtime_error);
    bool ran = false;
    executor.post(queue, [&] { ran = true; });
    executor.drain();
    CHECK(ran);
  });
}

TEST(tasks_may_post_but_not_wait) {
  on_both([](Executor& executor) {
    const QueueId queue = executor.create_queue("nested");
    std::atomic<bool> ran{false};
    executor.post(queue, [&] { executor.post(queue, [&] { ran = true; }); });
    executor.drain();
    CHECK(ran);
    executor.post(queue, [&] { executor.wait_until([] { return true; }); });
    CHECK_THROWS(executor.drain(), OrderError);
    executor.post(queue, [&] { executor.drain(); });
    CHECK_THROWS(executor.drain(), OrderError);
  });
}

TEST(destroying_a_queue_runs_what_it_holds) {
  on_both([](Executor& executor) {
    const QueueId queue = executor.create_queue("short-lived"), other = executor.create_queue("other");
    std::atomic<bool> open{false};
    int ran = 0;
    executor.post(
        queue, [&] { ++ran; }, flag_gate(open));
    executor.post(queue, [&] { ++ran; });
    executor.post(other, [&] {
      open = true;
      executor.notify();
    });
    executor.destroy_queue(queue);
    CHECK_EQUAL(ran, 2);
    CHECK_THROWS(executor.post(queue, [] {}), InputError);
    CHECK_THROWS(executor.destroy_queue(queue), InputError);
  });
}

TEST(the_destructor_runs_what_is_left) {
  for (const bool seeded : {false, true}) {
    std::atomic<int> ran{0};
    {
      const auto executor = seeded ? make_seeded_executor(7) : make_threaded_executor();
      for (int index = 0; index < 3; ++index) {
        const QueueId queue = executor->create_queue("left");
        for (int count = 0; count < 10; ++count) executor->post(queue, [&] { ++ran; });
      }
    }
    CHECK_EQUAL(ran.load(), 30);
  }
}

TEST(a_task_may_release_the_last_reference) {
  std::atomic<bool> released{false};
  auto executor = make_threaded_executor();
  const QueueId queue = executor->create_queue("last");
  Executor* raw = executor.get();
  auto holder = std::make_shared<std::shared_ptr<Executor>>(std::move(executor));
  std::atomic<bool> go{false};
  raw->post(queue, [&released, &go, holder]() mutable {
    while (!go) std::this_thread::yield();
    holder->reset();
    released = true;
  });
  holder.reset();
  go = true;
  while (!released) std::this_thread::yield();
  CHECK(released);
}

TEST(wait_for_gives_up) {
  on_both([](Executor& executor) { CHECK(!executor.wait_for([] { return false; }, 1000)); });
  on_both([](Executor& executor) { CHECK(executor.wait_for([] { return true; }, 0)); });
}

TEST(many_threads_post_and_wait) {
  on_both([](Executor& executor) {
    std::vector<QueueId> queues;
    for (int index = 0; index < 3; ++index) queues.push_back(executor.create_queue("shared"));
    std::atomic<int> total{0};
    std::atomic<int> failures{0};
    std::vector<std::thread> threads;
    for (int index = 0; index < 4; ++index)
      threads.emplace_back([&] {
        for (int round = 0; round < 50; ++round) {
          auto done = std::make_shared<std::atomic<bool>>(false);
          executor.post(queues[static_cast<size_t>(round) % 3], [&, done] {
            ++total;
            *done = true;
            executor.notify();
          });
          try {
            executor.wait_until([done] { return done->load(); });
          } catch (const std::exception&) {
            ++failures;
          }
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK_EQUAL(total.load(), 200);
    CHECK_EQUAL(failures.load(), 0);
  });
}

TEST(threads_have_the_name_of_their_queue) {
  const auto executor = make_threaded_executor();
  char name[16] = "";
  executor->post(executor->create_queue("memsys-out-of-device"),
                 [&] { pthread_getname_np(pthread_self(), name, sizeof name); });
  executor->drain();
  CHECK_EQUAL(std::string(name), "memsys-out-of-d");
}

TEST(a_forked_child_can_destroy_but_not_use) {
  auto executor = make_threaded_executor();
  const QueueId queue = executor->create_queue("parent");
  std::atomic<bool> ran{false};
  executor->post(queue, [&] { ran = true; });
  executor->drain();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    int status = 1;
    try {
      executor->post(queue, [] {});
    } catch (const Error&) {
      status = 0;
    }
    executor->notify();
    executor.reset();
    _exit(status);
  }
  int status = -1;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(one_seed_is_one_schedule) {
  std::vector<Schedule> earlier;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const Schedule first = schedule_of(seed), again = schedule_of(seed);
    CHECK_EQUAL(first.order, again.order);
    CHECK_EQUAL(first.digest, again.digest);
    for (const auto& other : earlier) CHECK(other.order != first.order && other.digest != first.digest);
    earlier.push_back(first);
  }
}

TEST(a_wait_that_cannot_end_names_the_queues) {
  const auto executor = make_seeded_executor(1);
  const std::atomic<bool> closed{false};
  executor->post(
      executor->create_queue("lane out"), [] {}, flag_gate(closed));
  for (const bool draining : {false, true}) {
    std::string message;
    try {
      if (draining)
        executor->drain();
      else
        executor->wait_until([] { return false; });
    } catch (const OrderError& error) {
      message = error.what();
    }
    CHECK(message.find("lane out") != std::string::npos);
  }
}

TEST(destroying_a_queue_that_cannot_finish_is_an_error) {
  const auto executor = make_seeded_executor(1);
  const std::atomic<bool> closed{false};
  const QueueId queue = executor->create_queue("stuck");
  executor->post(
      queue, [] {}, flag_gate(closed));
  CHECK_THROWS(executor->destroy_queue(queue), OrderError);
}

TEST(step_runs_as_many_as_asked) {
  const auto executor = make_seeded_executor(3);
  int ran = 0;
  const QueueId queue = executor->create_queue("stepped");
  for (int count = 0; count < 5; ++count) executor->post(queue, [&] { ++ran; });
  CHECK_EQUAL(executor->step(2), int64_t{2});
  CHECK_EQUAL(ran, 2);
  CHECK_EQUAL(executor->step(10), int64_t{3});
  CHECK_EQUAL(make_threaded_executor()->step(5), int64_t{0});
}
