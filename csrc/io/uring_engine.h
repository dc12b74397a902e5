// The io engine over Linux's io_uring: one thread keeps a deep queue of transfers going.
#pragma once

#include <memory>

#include "io/io_engine.h"

namespace memsys {

// Throws SpillError where the system refuses a ring.
std::shared_ptr<IoEngine> make_uring_engine(std::shared_ptr<Executor> executor, int64_t queue_depth);

}  // namespace memsys
