// Runs the pieces of one loop on the calling thread and on helpers. Pieces are taken one by one, so that a helper that
// wakes late, or a core that somebody else uses, costs nobody a wait for a fixed share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/executor.h"

namespace memsys {

// Runs function(data) on each of `thread_count` threads of somebody else's pool, the caller's among them, and returns
// when all have: OpenMP's GOMP_parallel, by its address. A framework's idle workers spin for milliseconds, and would
// take the cores from threads of our own, so the work is better done on them.
using ForeignPool = void (*)(void (*function)(void*), void* data, unsigned thread_count, unsigned flags);

class RowTeam {
 public:
  // With a foreign pool there are no helpers of our own.
  RowTeam(std::shared_ptr<Executor> executor, int64_t helper_count, ForeignPool pool = nullptr);
  ~RowTeam();
  RowTeam(const RowTeam&) = delete;
  RowTeam& operator=(const RowTeam&) = delete;

  // Calls body(piece) once for each piece in [0, piece_count), on at most `thread_count` threads; returns when all are
  // done. `body` does not throw. Any thread may call it, several at once; never from a task.
  void run(int64_t piece_count, int64_t thread_count, const std::function<void(int64_t)>& body);

 private:
  const std::shared_ptr<Executor> executor_;
  const ForeignPool pool_;
  std::vector<QueueId> queues_;
};

}  // namespace memsys
