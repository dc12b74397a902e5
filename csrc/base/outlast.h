// Waiting for tasks that use memory of the caller: a wait may end early with the failure of somebody else's task, and
// the memory must stay until its own users have ended.
#pragma once

#include <exception>
#include <functional>

#include "base/executor.h"

namespace memsys {

// Returns once `ready` is true, however often a wait for it fails; gives back the last such failure, or null.
inline std::exception_ptr outlast(Executor& executor, const std::function<bool()>& ready) {
  std::exception_ptr foreign;
  while (!ready()) {
    try {
      executor.wait_until(ready);
    } catch (...) {
      foreign = std::current_exception();
    }
  }
  return foreign;
}

}  // namespace memsys
