// Chooses the io engine: see io_engine.h.
#include "io/io_engine.h"

#include <cerrno>
#include <cstdlib>

#include "base/error.h"
#include "io/thread_engine.h"
#include "io/uring_engine.h"

namespace memsys {
namespace {

IoEngineChoice choice_of_environment() {
  const char* text = std::getenv("MEMSYS_IO");
  const std::string name = text == nullptr ? "" : text;
  if (name.empty()) return IoEngineChoice::automatic;
  if (name == "threads") return IoEngineChoice::threads;
  if (name == "uring") return IoEngineChoice::uring;
  throw InputError("MEMSYS_IO is '" + name + "': set it to 'threads' or 'uring', or unset it");
}

void expect_sensible(const IoEngineOptions& options) {
  constexpr int64_t kMostThreads = 256, kDeepestQueue = 4096;
  MEMSYS_EXPECT(options.thread_count >= 1 && options.thread_count <= kMostThreads, InputError,
                "thread_count is " + std::to_string(options.thread_count) + ": choose 1 to 256");
  MEMSYS_EXPECT(options.queue_depth >= 1 && options.queue_depth <= kDeepestQueue, InputError,
                "queue_depth is " + std::to_string(options.queue_depth) + ": choose 1 to 4096");
}

}  // namespace

std::shared_ptr<IoEngine> make_io_engine(std::shared_ptr<Executor> executor, IoEngineOptions options) {
  expect_sensible(options);
  if (options.choice == IoEngineChoice::automatic) options.choice = choice_of_environment();
  // The ring completes when the kernel likes; a seed decides every order only if the executor runs every transfer.
  if (executor->is_seeded()) options.choice = IoEngineChoice::threads;
  if (options.choice == IoEngineChoice::threads) return make_thread_engine(std::move(executor), options.thread_count);

  const bool is_demanded = options.choice == IoEngineChoice::uring;
  std::string reason;
  if (!probe_uring(&reason)) {
    if (is_demanded) throw SpillError(EPERM, "io_uring does not work here: " + reason + "; choose 'threads'");
    return make_thread_engine(std::move(executor), options.thread_count);
  }
  try {
    return make_uring_engine(executor, options.queue_depth);
  } catch (const SpillError&) {
    // The probe's small ring was granted and this one not: locked memory or descriptors ran out since.
    if (is_demanded) throw;
    return make_thread_engine(std::move(executor), options.thread_count);
  }
}

}  // namespace memsys
