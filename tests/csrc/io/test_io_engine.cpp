// The contract of an io engine, over each one: one attempt a request, answered from a task, from any thread, to the
// end; nothing in flight is lost when the engine goes, and nothing hangs after fork().
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/bytes.h"
#include "csrc/io/fixture.h"

using namespace io_test;

namespace {

constexpr int64_t kPiece = 64 * kKiB;

// Gathers answers; wait() returns when all came.
struct Answers {
  explicit Answers(int64_t wanted) : results(static_cast<size_t>(wanted)) {}
  std::function<void(IoAttempt)> slot(int64_t index) {
    return [this, index](IoAttempt result) {
      results[static_cast<size_t>(index)] = result;
      inline_count.fetch_add(std::this_thread::get_id() == maker ? 1 : 0);
      ++count;
    };
  }
  void expect_all_moved(int64_t bytes) const {
    CHECK_EQUAL(count.load(), static_cast<int64_t>(results.size()));
    for (const IoAttempt& result : results) CHECK(result.errno_value == 0 && result.moved_bytes == bytes);
  }
  std::vector<IoAttempt> results;
  std::atomic<int64_t> count{0}, inline_count{0};
  std::thread::id maker = std::this_thread::get_id();
};

std::vector<Engine> shallow_engines() {
  std::vector<Engine> engines{make_engine(IoEngineChoice::threads)};
  if (probe_uring(nullptr)) engines.push_back(make_engine(IoEngineChoice::uring, 3));
  return engines;
}

int64_t cpu_us() {
  timespec now = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec * 1'000'000 + now.tv_nsec / 1000;
}

// Denies io_uring to this process as a container's filter does; false where filters are denied too.
bool deny_uring() {
  sock_filter steps[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                         BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{4, steps};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}

// The exit status of this test program, run with io_uring denied for one of its tests; 99 where that is impossible.
int run_denied(const char* test) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (deny_uring()) ::execl("/proc/self/exe", "test_io", test, nullptr);
    ::_exit(99);
  }
  int status = 0;
  CHECK_EQUAL(::waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status);
}

class Environment {
 public:
  explicit Environment(const char* value) { ::setenv("MEMSYS_IO", value, 1); }
  ~Environment() { ::unsetenv("MEMSYS_IO"); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
};

}  // namespace

TEST(uring_works_here) {
  std::string reason;
  if (!probe_uring(&reason)) SKIP("every io test ran over threads alone: " + reason);
  CHECK_EQUAL(make_engine(IoEngineChoice::uring).engine->name(), std::string("uring"));
}

TEST(many_requests_from_several_threads_all_arrive) {
  constexpr int64_t kThreads = 4, kEach = 48, kCount = kThreads * kEach;
  const Folder folder;
  for (const Engine& engine : shallow_engines()) {
    const auto file = File::make_spill(folder.path());
    const Block source(kCount * kPiece), target(kCount * kPiece);
    source.fill(kCount * kPiece, 11);
    for (const IoKind kind : {IoKind::write, IoKind::read}) {
      Answers answers(kCount);
      const Block& block = kind == IoKind::write ? source : target;
      std::vector<std::thread> threads;
      // Threads end with requests in flight: these must not end with them.
      for (int64_t thread = 0; thread < kThreads; ++thread)
        threads.emplace_back([&, thread] {
          for (int64_t index = thread; index < kCount; index += kThreads)
            engine.engine->submit({file.get(), kind, block.data() + index * kPiece, index * kPiece, kPiece},
                                  answers.slot(index));
        });
      for (std::thread& thread : threads) thread.join();
      engine.executor->drain();
      answers.expect_all_moved(kPiece);
      CHECK_EQUAL(answers.inline_count.load(), 0);
    }
    CHECK(is_same(source, target, kCount * kPiece));
  }
}

TEST(one_attempt_reports_what_the_system_said) {
  const Folder folder;
  const Block block(2 * kPiece);
  for (const Engine& engine : all_engines()) {
    const auto file = File::make_spill(folder.path());
    file->truncate(1000);
    Answers answers(4);
    engine.engine->submit({file.get(), IoKind::read, block.data(), 0, kPiece}, answers.slot(0));
    engine.engine->submit({file.get(), IoKind::read, block.data(), 2 * kPiece, kPiece}, answers.slot(1));
    engine.engine->submit({file.get(), IoKind::read, block.data(), 100, 0}, answers.slot(2));
    engine.engine->submit({file.get(), IoKind::read, nullptr, 1, 10}, answers.slot(3));
    engine.executor->drain();
    CHECK_EQUAL(answers.results[0].moved_bytes, 1000);
    CHECK(answers.results[1].moved_bytes == 0 && answers.results[1].errno_value == 0);
    CHECK(answers.results[2].moved_bytes == 0 && answers.results[2].errno_value == 0);
    CHECK_EQUAL(answers.results[3].errno_value, EFAULT);
  }
}

TEST(answers_may_submit_more) {
  const Folder folder;
  for (const Engine& engine : shallow_engines()) {
    const auto file = File::make_spill(folder.path());
    const Block block(kPiece);
    std::atomic<int64_t> left{500};
    std::function<void(IoAttempt)> again = [&](IoAttempt) {
      if (--left > 0) engine.engine->submit({file.get(), IoKind::write, block.data(), 0, 512}, again);
    };
    engine.engine->submit({file.get(), IoKind::write, block.data(), 0, 512}, again);
    engine.executor->drain();
    CHECK_EQUAL(left.load(), 0);
  }
}

TEST(an_engine_waits_for_what_is_in_flight) {
  const Folder folder;
  const Block block(32 * kPiece);
  for (Engine& engine : shallow_engines()) {
    const auto file = File::make_spill(folder.path());
    Answers answers(32);
    for (int64_t index = 0; index < 32; ++index)
      engine.engine->submit({file.get(), IoKind::write, block.data() + index * kPiece, index * kPiece, kPiece},
                            answers.slot(index));
    engine.engine.reset();
    answers.expect_all_moved(kPiece);
  }
}

TEST(an_engine_may_be_dropped_by_its_own_task) {
  const Folder folder;
  const Block block(kPiece);
  for (Engine& engine : shallow_engines()) {
    const auto file = File::make_spill(folder.path());
    std::atomic<bool> is_done{false};
    IoEngine& borrowed = *engine.engine;
    borrowed.submit({file.get(), IoKind::write, block.data(), 0, kPiece},
                    [&, held = std::move(engine.engine)](IoAttempt) mutable {
                      held.reset();
                      is_done = true;
                    });
    engine.executor->drain();
    CHECK(is_done.load());
  }
}

TEST(an_idle_engine_takes_no_time) {
  const Folder folder;
  const Block block(kPiece);
  for (const Engine& engine : all_engines()) {
    const auto file = File::make_spill(folder.path());
    transfer(*engine.executor, engine.engine, {file.get(), IoKind::write, block.data(), 0, kPiece});
    const int64_t before = cpu_us();
    ::usleep(100'000);
    CHECK(cpu_us() - before < 50'000);
  }
}

TEST(engines_give_their_descriptors_back) {
  const int64_t before = open_descriptor_count();
  for (int round = 0; round < 10; ++round) {
    const Folder folder;
    const auto file = File::make_spill(folder.path());
    const Block block(kPiece);
    for (const Engine& engine : all_engines())
      transfer(*engine.executor, engine.engine, {file.get(), IoKind::write, block.data(), 0, kPiece});
  }
  CHECK_EQUAL(open_descriptor_count(), before);
}

TEST(a_forked_child_is_refused_and_does_not_hang) {
  const Folder folder;
  const Block block(16 * kPiece);
  for (Engine& engine : shallow_engines()) {
    const auto file = File::make_spill(folder.path());
    Answers answers(16);
    for (int64_t index = 0; index < 16; ++index)
      engine.engine->submit({file.get(), IoKind::write, block.data() + index * kPiece, index * kPiece, kPiece},
                            answers.slot(index));
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);
      int status = 1;
      try {
        engine.engine->submit({file.get(), IoKind::write, block.data(), 0, kPiece}, [](IoAttempt) {});
      } catch (const Error&) {
        status = 0;
      }
      engine.engine.reset();
      engine.executor.reset();
      ::_exit(status);
    }
    int status = -1;
    CHECK_EQUAL(::waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    engine.executor->drain();
    answers.expect_all_moved(kPiece);
  }
}

TEST(a_seed_decides_the_order_of_answers) {
  const Folder folder;
  const auto file = File::make_spill(folder.path());
  const Block block(kPiece);
  const auto order_of = [&](uint64_t seed) {
    const auto executor = make_seeded_executor(seed);
    const auto engine = make_io_engine(executor, {.choice = IoEngineChoice::uring});
    CHECK_EQUAL(engine->name(), std::string("threads"));
    std::vector<int> order;
    for (int index = 0; index < 16; ++index)
      engine->submit({file.get(), IoKind::write, block.data(), 0, 512},
                     [&, index](IoAttempt) { order.push_back(index); });
    CHECK(order.empty());
    executor->drain();
    CHECK_EQUAL(order.size(), size_t{16});
    return order;
  };
  CHECK(order_of(1) == order_of(1));
  CHECK(order_of(1) != order_of(2) || order_of(1) != order_of(3));
}

TEST(the_environment_decides_where_the_caller_does_not) {
  const auto executor = make_threaded_executor();
  std::string reason;
  const std::string best = probe_uring(&reason) ? "uring" : "threads";
  CHECK_EQUAL(reason.empty(), best == "uring");
  CHECK_EQUAL(make_io_engine(executor)->name(), best);
  {
    const Environment threads("threads");
    CHECK_EQUAL(make_io_engine(executor)->name(), std::string("threads"));
  }
  {
    const Environment uring("uring");
    if (best == "uring")
      CHECK_EQUAL(make_io_engine(executor)->name(), best);
    else
      CHECK_THROWS(make_io_engine(executor), SpillError);
  }
  {
    const Environment nonsense("liburing");
    CHECK_THROWS(make_io_engine(executor), InputError);
  }
  CHECK_THROWS(make_io_engine(executor, {.thread_count = 0}), InputError);
  CHECK_THROWS(make_io_engine(executor, {.queue_depth = 0}), InputError);
}

TEST(denied_io_uring_falls_back_to_threads) {
  const int fallen_back = run_denied("the_environment_decides_where_the_caller_does_not");
  if (fallen_back == 99) SKIP("seccomp filters are denied here");
  CHECK_EQUAL(fallen_back, 0);
  CHECK_EQUAL(run_denied("uring_works_here"), 77);
  CHECK_EQUAL(run_denied("many_requests_from_several_threads_all_arrive"), 0);
}
