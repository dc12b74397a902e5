// The io engine that works everywhere: plain pread and pwrite, one transfer at a time on each of a few queues.
#pragma once

#include <memory>

#include "io/io_engine.h"

namespace memsys {

std::shared_ptr<IoEngine> make_thread_engine(std::shared_ptr<Executor> executor, int64_t thread_count);

}  // namespace memsys
