// An io engine that fails on purpose: the k-th attempt, once or from then on, in a chosen way. Built into the
// library because the seam is only honest if the tests drive the shipped code through it.
#pragma once

#include <cstdint>
#include <memory>

#include "base/fault_counter.h"
#include "io/io_engine.h"

namespace memsys {

enum class IoFault { none, no_space, io_error, interrupted, again, short_transfer, corrupt, truncated, refused };
enum class IoOperation { any, read, write };

struct IoFaultPlan {
  IoFault fault = IoFault::none;
  int64_t at = 0;  // counts attempts from 0
  FaultSpan span = FaultSpan::once;
  IoOperation operation = IoOperation::any;  // which attempts are counted, and may fail
};

class FaultyIoEngine : public IoEngine {
 public:
  virtual void arm(const IoFaultPlan& plan) = 0;  // starts counting anew
  virtual int64_t attempt_count() const = 0;      // since arm()
};

// `corrupt` flips one bit of what a read returns; `short_transfer` moves half; `truncated` reads 0 bytes;
// `refused` takes no request: submit() throws.
std::shared_ptr<FaultyIoEngine> make_faulty_io_engine(std::shared_ptr<IoEngine> inner);

}  // namespace memsys
