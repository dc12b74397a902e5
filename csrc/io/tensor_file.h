// Reads the header of a tensor file from disk: by exact reads against the file's size, never through a mapping,
// whose reader dies by SIGBUS when the file shrinks.
#pragma once

#include "io/file.h"
#include "io/tensor_header.h"

namespace memsys {

// Throws CorruptionError for a bad or shrinking file and SpillError when the system refuses a read.
TensorFile read_tensor_header(const File& file);

}  // namespace memsys
