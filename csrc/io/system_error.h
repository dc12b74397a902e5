// The words of an errno: one form for every file error, so that each names what was wanted, what the system said,
// how much space is free and one remedy.
#pragma once

#include <string>

#include "base/error.h"

namespace memsys {

// "No space left on device (errno 28)". Thread-safe, unlike strerror.
std::string describe_errno(int errno_value);
// "12.0 GiB free on its disk", or "free space unknown".
std::string describe_free_space(int descriptor);
// What a person can do about it.
std::string remedy_for(int errno_value);
// "<what>: <errno>; <free space>; <remedy>". `descriptor` may be -1.
SpillError spill_error(int errno_value, const std::string& what, int descriptor);

}  // namespace memsys
