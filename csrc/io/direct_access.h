// Finds out whether a file can be read and written past the page cache, by doing it once: file systems accept
// O_DIRECT and then refuse the transfer, or ask for an alignment that only statx tells.
#pragma once

#include <cstdint>

#include "io/descriptor.h"

namespace memsys {

struct DirectAccess {
  Descriptor descriptor;  // not open: no direct transfers here
  int64_t alignment = 1;
};

enum class DirectTrial { read, write_and_read };

// A second descriptor of the file behind `descriptor`. `write_and_read` overwrites the file's first bytes and then
// empties it: for new files only.
DirectAccess open_direct(int descriptor, int access_flags, DirectTrial trial);

}  // namespace memsys
