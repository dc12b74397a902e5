// The executor of tests: no threads; whoever waits runs the tasks, in an order drawn from the seed. One seed is one
// schedule, so a failure replays exactly.
#include <atomic>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/executor.h"

namespace memsys {
namespace {

struct Item {
  Task task;
  Gate gate;
};

struct Queue {
  std::string name;
  std::deque<Item> items;
};

constexpr uint64_t kStep = 0x9e3779b97f4a7c15U;

uint64_t mix(uint64_t value) {
  value += kStep;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): the same sequence on every platform, unlike <random>'s
// distributions.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t bound) {
    const uint64_t mixed = mix(state_);
    state_ += kStep;
    return (mixed >> 32) * bound >> 32;
  }

 private:
  uint64_t state_;
};

class SeededExecutor final : public Executor {
 public:
  explicit SeededExecutor(uint64_t seed) : generator_(seed) {}
  SeededExecutor(const SeededExecutor&) = delete;
  SeededExecutor& operator=(const SeededExecutor&) = delete;

  ~SeededExecutor() override {
    // As the threaded one, finish what can be finished; a task that can never start is dropped.
    while (run_one()) continue;
  }

  QueueId create_queue(const std::string& name) override {
    const std::lock_guard lock(mutex_);
    const QueueId id = next_queue_++;
    queues_[id].name = name;
    return id;
  }

  void destroy_queue(QueueId id) override {
    const auto is_empty = [this, id] {
      const std::lock_guard lock(mutex_);
      return find_locked(id).items.empty();
    };
    const bool finished = run_until(is_empty, Failure::keep);
    const std::string held = describe_queues();
    {
      const std::lock_guard runner(runner_);
      const std::lock_guard lock(mutex_);
      queues_.erase(id);
    }
    MEMSYS_EXPECT(finished, OrderError, "a queue was destroyed that can never finish; its tasks are dropped. " + held);
  }

  void post(QueueId id, Task task, Gate gate) override {
    const std::lock_guard lock(mutex_);
    find_locked(id).items.push_back({std::move(task), std::move(gate)});
  }

  void wait_until(const std::function<bool()>& ready) override {
    MEMSYS_EXPECT(run_until(ready, Failure::raise), OrderError,
                  "a wait can never be satisfied: no task can run. " + describe_queues());
  }

  bool wait_for(const std::function<bool()>& ready, int64_t) override { return run_until(ready, Failure::raise); }

  void notify() override {}  // gates are looked at before each task

  void drain() override {
    const auto is_empty = [this] {
      const std::lock_guard lock(mutex_);
      for (const auto& [id, queue] : queues_)
        if (!queue.items.empty()) return false;
      return true;
    };
    MEMSYS_EXPECT(run_until(is_empty, Failure::raise), OrderError,
                  "drain can never end: no task can run. " + describe_queues());
  }

  int64_t step(int64_t count) override {
    expect_outside_task();
    int64_t ran = 0;
    while (ran < count) {
      const std::lock_guard runner(runner_);
      if (!run_one()) break;
      ++ran;
    }
    return ran;
  }

  int64_t now_us() const override { return ran_count_; }
  bool is_seeded() const override { return true; }
  uint64_t schedule_digest() const override { return digest_; }

 private:
  enum class Failure { raise, keep };

  // Runs tasks until `ready`; false if none can run before that. Failures of tasks are raised here or kept for the
  // next wait.
  bool run_until(const std::function<bool()>& ready, Failure failure) {
    expect_outside_task();
    for (;;) {
      const std::lock_guard runner(runner_);
      if (failure == Failure::raise && error_) std::rethrow_exception(std::exchange(error_, nullptr));
      if (ready()) return true;
      if (!run_one()) return false;
    }
  }

  struct Head {
    QueueId id;
    Queue* queue;
    const Gate* gate;
  };

  // Runs one runnable head, chosen uniformly. Only the holder of runner_ takes heads away, and posting moves none, so
  // their gates can be looked at without mutex_ and may call whatever they like.
  bool run_one() {
    std::vector<std::pair<QueueId, Queue*>> runnable, blocking;
    for (const auto& [id, queue, gate] : heads()) {
      if (!gate->ready || gate->ready())
        runnable.emplace_back(id, queue);
      else if (gate->block)
        blocking.emplace_back(id, queue);
    }
    // Something outside the executor (a GPU) will make these ready; until then everything else goes first.
    if (runnable.empty()) runnable = blocking;
    if (runnable.empty()) return false;
    const auto [id, queue] = runnable[generator_.below(runnable.size())];
    Item item;
    {
      const std::lock_guard lock(mutex_);
      item = std::move(queue->items.front());
      queue->items.pop_front();
    }
    digest_ = mix(digest_ ^ static_cast<uint64_t>(id));
    run(std::move(item));
    return true;
  }

  void run(Item item) {
    running_ = this;
    ++ran_count_;
    try {
      if (item.gate.ready && !item.gate.ready()) item.gate.block();
      item.task();
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    item = {};
    running_ = nullptr;
  }

  std::vector<Head> heads() {
    const std::lock_guard lock(mutex_);
    std::vector<Head> found;
    for (auto& [id, queue] : queues_)
      if (!queue.items.empty()) found.push_back({id, &queue, &queue.items.front().gate});
    return found;
  }

  std::string describe_queues() {
    const std::lock_guard lock(mutex_);
    std::string text;
    for (const auto& [id, queue] : queues_)
      if (!queue.items.empty())
        text += (text.empty() ? "Held back by a gate: '" : ", '") + queue.name + "' (" +
                std::to_string(queue.items.size()) + " tasks)";
    return text.empty() ? "Every queue is empty: nothing was posted that could satisfy it." : text + ".";
  }

  Queue& find_locked(QueueId id) {
    const auto found = queues_.find(id);
    MEMSYS_EXPECT(found != queues_.end(), InputError,
                  "executor has no queue " + std::to_string(id) + ": it was never created or is destroyed already");
    return found->second;
  }

  void expect_outside_task() const {
    MEMSYS_EXPECT(running_ != this, OrderError,
                  "a task waited for the executor that runs it: post a gated task instead");
  }

  static thread_local const SeededExecutor* running_;

  std::mutex runner_;  // held while one task is chosen and run
  std::mutex mutex_;   // guards the queues; never held while foreign code runs
  std::map<QueueId, Queue> queues_;
  QueueId next_queue_ = 1;
  Generator generator_;
  std::atomic<int64_t> ran_count_{0};  // written under runner_
  std::atomic<uint64_t> digest_{0};    // written under runner_
  std::exception_ptr error_;
};

thread_local const SeededExecutor* SeededExecutor::running_ = nullptr;

}  // namespace

std::shared_ptr<Executor> make_seeded_executor(uint64_t seed) { return std::make_shared<SeededExecutor>(seed); }

}  // namespace memsys
