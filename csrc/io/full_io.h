// Completes a transfer: continues after short reads and writes, retries EINTR and EAGAIN a bounded number of times,
// and turns what is left into a typed error that names path, offset, wanted and found bytes.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>

#include "io/io_engine.h"

namespace memsys {

// Calls `done` once, from a task, with nullptr on success, else a SpillError (or, for a read that meets the end of
// the file, a CorruptionError: the file is shorter than what was written to it). Throws InputError, and calls nothing,
// for a request without file or memory or with negative numbers.
void transfer_fully(std::shared_ptr<IoEngine> engine, const IoRequest& request,
                    std::function<void(std::exception_ptr)> done);

}  // namespace memsys
