// The executor of production: one thread per queue. Every queue has its own condition variable, so that a post
// wakes its own thread alone; a needless context switch is time stolen from the training step.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/executor.h"
#include "base/small_memory.h"

namespace memsys {
namespace {

struct Item {
  Task task;
  Gate gate;
};

struct Queue {
  std::string name;
  std::deque<Item, SmallAllocator<Item>> items;
  std::condition_variable wake;
  std::thread thread;
  bool at_gate = false;  // the thread sleeps, or is about to, until its head's gate is notified
  bool closing = false;
};

// What the threads share. They hold it too, so that the last release of an executor may happen inside a task.
// No foreign code (task, gate, predicate) runs under the mutex.
struct State {
  std::mutex mutex;
  std::map<QueueId, std::shared_ptr<Queue>> queues;
  QueueId next_queue = 1;
  int64_t unfinished_count = 0;  // tasks posted and not yet ended
  int64_t notify_count = 0;      // tells a sleeper that something was notified since it last looked
  std::condition_variable waiters;
  std::condition_variable idle;
  std::exception_ptr error;                    // the first one a task threw
  std::shared_ptr<FaultCounter> start_faults;  // may be null
};

// The executor whose task this thread is running: such a thread may not wait for it.
thread_local const State* running_state = nullptr;

void rethrow_kept(State& state) {
  if (state.error) std::rethrow_exception(std::exchange(state.error, nullptr));
}

// Returns once the gate is ready. Reads notify_count first: a notify between the look and the sleep is not lost.
void pass_gate(State& state, Queue& queue, const Gate& gate) {
  if (!gate.ready) return;
  for (;;) {
    std::unique_lock lock(state.mutex);
    queue.at_gate = true;
    const int64_t seen = state.notify_count;
    lock.unlock();
    const bool ready = gate.ready();
    if (!ready && gate.block) gate.block();
    lock.lock();
    if (!ready && !gate.block) queue.wake.wait(lock, [&] { return state.notify_count != seen; });
    queue.at_gate = false;
    if (ready || gate.block) return;
  }
}

void run_item(State& state, Queue& queue, Item item) {
  std::exception_ptr error;
  try {
    pass_gate(state, queue, item.gate);
    item.task();
  } catch (...) {
    error = std::current_exception();
  }
  item = {};  // what the task held is released before anyone is told that it ended
  const std::lock_guard lock(state.mutex);
  if (error && !state.error) {
    state.error = error;
    state.waiters.notify_all();
  }
  if (--state.unfinished_count == 0) state.idle.notify_all();
}

void run_queue(const std::shared_ptr<State>& state, const std::shared_ptr<Queue>& queue) {
  running_state = state.get();
  pthread_setname_np(pthread_self(), queue->name.substr(0, 15).c_str());
  std::unique_lock lock(state->mutex);
  for (;;) {
    queue->wake.wait(lock, [&] { return queue->closing || !queue->items.empty(); });
    if (queue->items.empty()) return;
    Item item = std::move(queue->items.front());
    queue->items.pop_front();
    lock.unlock();
    run_item(*state, *queue, std::move(item));
    lock.lock();
  }
}

// The thread inherits a mask that blocks every signal: signals belong to the program's own threads.
std::thread start_thread(const std::shared_ptr<State>& state, const std::shared_ptr<Queue>& queue) {
  const bool is_refused = state->start_faults != nullptr && state->start_faults->next_fails();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  std::string refusal;
  try {
    if (is_refused) throw std::system_error(EAGAIN, std::generic_category(), "a fault was injected");
    thread = std::thread([state, queue] { run_queue(state, queue); });
  } catch (const std::system_error& error) {
    refusal = error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  MEMSYS_EXPECT(thread.joinable(), Error,
                "cannot start a thread for queue '" + queue->name + "': " + refusal +
                    "; raise the limit on threads (ulimit -u, or pids.max of the control group)");
  return thread;
}

class ThreadedExecutor final : public Executor {
 public:
  explicit ThreadedExecutor(std::shared_ptr<FaultCounter> start_faults)
      : state_(std::make_shared<State>()), owner_pid_(getpid()) {
    state_->start_faults = std::move(start_faults);
  }
  ThreadedExecutor(const ThreadedExecutor&) = delete;
  ThreadedExecutor& operator=(const ThreadedExecutor&) = delete;

  ~ThreadedExecutor() override {
    if (getpid() != owner_pid_) {
      // After fork() the threads are gone but the locks look held: destroying them could wait for ever.
      new std::shared_ptr<State>(state_);
      return;
    }
    std::vector<std::shared_ptr<Queue>> queues;
    {
      const std::lock_guard lock(state_->mutex);
      for (auto& [id, queue] : state_->queues) queues.push_back(queue);
      for (auto& queue : queues) close_locked(*queue);
    }
    const bool inside_task = running_state == state_.get();
    for (auto& queue : queues) {
      if (!queue->thread.joinable()) continue;
      if (inside_task)
        queue->thread.detach();  // a task released the last reference; it cannot wait for itself
      else
        queue->thread.join();
    }
  }

  QueueId create_queue(const std::string& name) override {
    expect_owner();
    const std::lock_guard lock(state_->mutex);
    const QueueId id = state_->next_queue++;
    state_->queues[id] = std::make_shared<Queue>();
    state_->queues[id]->name = name;
    return id;
  }

  void destroy_queue(QueueId id) override {
    expect_owner();
    expect_outside_task("destroy_queue");
    std::shared_ptr<Queue> queue;
    {
      const std::lock_guard lock(state_->mutex);
      queue = find_locked(id);
      close_locked(*queue);
    }
    // Until its thread has ended the queue stays listed, so that notify() still reaches its gate.
    if (queue->thread.joinable()) queue->thread.join();
    const std::lock_guard lock(state_->mutex);
    state_->queues.erase(id);
  }

  void post(QueueId id, Task task, Gate gate) override {
    expect_owner();
    const std::lock_guard lock(state_->mutex);
    const std::shared_ptr<Queue> queue = find_locked(id);
    if (!queue->thread.joinable()) queue->thread = start_thread(state_, queue);
    queue->items.push_back({std::move(task), std::move(gate)});
    ++state_->unfinished_count;
    if (!queue->at_gate) queue->wake.notify_one();
  }

  void wait_until(const std::function<bool()>& ready) override { wait(ready, nullptr); }

  bool wait_for(const std::function<bool()>& ready, int64_t timeout_us) override {
    const Clock::time_point deadline = Clock::now() + std::chrono::microseconds(timeout_us);
    return wait(ready, &deadline);
  }

  void notify() override {
    if (getpid() != owner_pid_) return;
    const std::lock_guard lock(state_->mutex);
    ++state_->notify_count;
    for (auto& [id, queue] : state_->queues)
      if (queue->at_gate) queue->wake.notify_one();
    state_->waiters.notify_all();
  }

  void drain() override {
    expect_owner();
    expect_outside_task("drain");
    std::unique_lock lock(state_->mutex);
    state_->idle.wait(lock, [&] { return state_->unfinished_count == 0; });
    rethrow_kept(*state_);
  }

  int64_t step(int64_t) override { return 0; }
  int64_t now_us() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count();
  }
  bool is_seeded() const override { return false; }
  uint64_t schedule_digest() const override { return 0; }

 private:
  using Clock = std::chrono::steady_clock;

  bool wait(const std::function<bool()>& ready, const Clock::time_point* deadline) {
    expect_owner();
    expect_outside_task("wait_until");
    std::unique_lock lock(state_->mutex);
    for (;;) {
      rethrow_kept(*state_);
      const int64_t seen = state_->notify_count;
      lock.unlock();
      if (ready()) return true;
      lock.lock();
      const auto changed = [&] { return state_->notify_count != seen || state_->error; };
      if (!deadline)
        state_->waiters.wait(lock, changed);
      else if (!state_->waiters.wait_until(lock, *deadline, changed))
        return false;
    }
  }

  static void close_locked(Queue& queue) {
    queue.closing = true;
    queue.wake.notify_one();
  }

  std::shared_ptr<Queue> find_locked(QueueId id) const {
    const auto found = state_->queues.find(id);
    MEMSYS_EXPECT(found != state_->queues.end() && !found->second->closing, InputError,
                  "executor has no queue " + std::to_string(id) + ": it was never created or is destroyed already");
    return found->second;
  }

  void expect_owner() const {
    MEMSYS_EXPECT(getpid() == owner_pid_, Error,
                  "the transfer threads did not survive fork(): start worker processes with the 'spawn' method, or "
                  "call memsys afresh in the child");
  }

  void expect_outside_task(const std::string& call) const {
    MEMSYS_EXPECT(running_state != state_.get(), OrderError,
                  call + "() was called from inside a task: it would wait for itself; post a gated task instead");
  }

  const std::shared_ptr<State> state_;
  const pid_t owner_pid_;
};

}  // namespace

std::shared_ptr<Executor> make_threaded_executor(std::shared_ptr<FaultCounter> start_faults) {
  return std::make_shared<ThreadedExecutor>(std::move(start_faults));
}

}  // namespace memsys
