// Where every asynchronous step runs. There is no thread, sleep or condition variable elsewhere in csrc, so that
// one seed decides the whole schedule: the threaded executor gives each queue a thread; the seeded one runs every
// task on the waiting thread, in an order drawn from the seed, and so replays a run exactly.
//
// Contract, for both:
//  - A queue runs its tasks one at a time, in the order of posting. Tasks of different queues are unordered.
//  - A task starts only once its gate is ready; until then it holds back its own queue and no other.
//  - `Gate::ready` is cheap, thread-safe, never blocks, never throws, and stays true once true. Whoever makes one
//    true calls notify(). A gate that nobody notifies (a CUDA event) also has `block`, which returns once ready.
//  - Tasks do not throw: what fails is kept in the ticket it belongs to. A task that throws all the same ends the
//    wait_until() or drain() that runs next, with that exception.
//  - Tasks may post, and notify; they never call wait_until() or drain().
//  - No task takes the GIL or releases a Python object.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/fault_counter.h"

namespace memsys {

using Task = std::function<void()>;
using QueueId = int;

struct Gate {
  std::function<bool()> ready;  // empty: always ready
  std::function<void()> block;  // empty: somebody calls notify()
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual QueueId create_queue(const std::string& name) = 0;
  // Runs what the queue still holds, then ends its thread.
  virtual void destroy_queue(QueueId queue) = 0;
  virtual void post(QueueId queue, Task task, Gate gate = {}) = 0;

  // Returns once `ready` is true. The seeded executor runs tasks meanwhile, and throws OrderError with the list of
  // held-back queues if none can run. Callers release the GIL first.
  virtual void wait_until(const std::function<bool()>& ready) = 0;
  // As wait_until(), but gives up after `timeout_us`; returns whether ready. The seeded executor, which has no
  // clock, runs tasks until ready or until none can run.
  virtual bool wait_for(const std::function<bool()>& ready, int64_t timeout_us) = 0;
  virtual void notify() = 0;
  // Returns once every queue is empty and idle.
  virtual void drain() = 0;

  // Seeded: runs at most `count` runnable tasks, in the seed's order; returns how many ran. Threaded: 0.
  virtual int64_t step(int64_t count) = 0;
  // The clock of records: microseconds of std::chrono::steady_clock. Seeded: the tasks run so far, so that one seed is
  // one record.
  virtual int64_t now_us() const = 0;
  virtual bool is_seeded() const = 0;
  // Seeded: a number made of which queue ran when, which tells two equal runs from two that differ. Threaded: 0.
  virtual uint64_t schedule_digest() const = 0;
};

// Threads start with a queue's first task and end with the queue. `start_faults`: which starts fail, as they do where
// the system has no thread to give; null: none.
std::shared_ptr<Executor> make_threaded_executor(std::shared_ptr<FaultCounter> start_faults = nullptr);
std::shared_ptr<Executor> make_seeded_executor(uint64_t seed);

}  // namespace memsys
