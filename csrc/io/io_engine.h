// Moves bytes between memory and files, asynchronously. One attempt per submit: engines report what the system
// said (bytes moved, or an errno), and full_io.h above them completes short transfers and retries EINTR. So a
// faulty engine can sit between, and every fault takes the same road for threads and for io_uring.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/executor.h"
#include "io/file.h"

namespace memsys {

enum class IoKind { read, write };

struct IoRequest {
  const File* file = nullptr;  // stays open until done
  IoKind kind = IoKind::read;
  void* pointer = nullptr;  // a write only reads it
  int64_t offset = 0;
  int64_t bytes = 0;
};

// One attempt: moved bytes (perhaps fewer than asked; 0 for a read at the end of the file), or a positive errno.
struct IoAttempt {
  int64_t moved_bytes = 0;
  int errno_value = 0;
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;
  // Calls `done` once, from a task of the executor (never from inside submit).
  virtual void submit(const IoRequest& request, std::function<void(IoAttempt)> done) = 0;
  virtual std::string name() const = 0;
};

enum class IoEngineChoice { automatic, threads, uring };

struct IoEngineOptions {
  IoEngineChoice choice = IoEngineChoice::automatic;
  int64_t thread_count = 4;  // requests in flight of the thread engine
  int64_t queue_depth = 32;  // requests in flight of the io_uring engine
};

// `automatic` takes what the environment variable MEMSYS_IO names ("threads" or "uring"; a choice made in the options
// is kept), else io_uring where a probe at run time shows that it works. A seeded executor always gets the thread
// engine. `uring` where it is denied throws SpillError. Whoever drops the engine waits for what is in flight, except
// from inside a task.
std::shared_ptr<IoEngine> make_io_engine(std::shared_ptr<Executor> executor, IoEngineOptions options = {});
// Whether io_uring works here; if not, `reason` says why.
bool probe_uring(std::string* reason);

}  // namespace memsys
