// The errors of memsys. Each kind arrives in Python as a memsys class that is also Python's own kind
// (MemoryError, OSError, ValueError, ...). A message names what was asked, what was found and one remedy.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace memsys {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A budget or a memory is exhausted: MemoryError in Python.
class BudgetError : public Error {
 public:
  using Error::Error;
};

// The system refused a file operation: OSError in Python, with its errno.
class SpillError : public Error {
 public:
  SpillError(int errno_value, const std::string& message) : Error(message), errno_value_(errno_value) {}
  int errno_value() const { return errno_value_; }

 private:
  int errno_value_;
};

// Bytes came back other than they went: RuntimeError in Python. Never retried, never hidden.
class CorruptionError : public Error {
 public:
  using Error::Error;
};

// The caller's argument makes no sense: ValueError in Python.
class InputError : public Error {
 public:
  using Error::Error;
};

// The accelerator or its driver refused a call: RuntimeError in Python.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// Seeded mode only: two accesses to a block lack a happens-before edge, or a wait can never be satisfied.
class OrderError : public Error {
 public:
  using Error::Error;
};

}  // namespace memsys

// Throws `type(message)` unless `condition`; the message expression is evaluated only on failure.
#define MEMSYS_EXPECT(condition, type, message) \
  do {                                          \
    if (!(condition)) [[unlikely]]              \
      throw type(message);                      \
  } while (false)
