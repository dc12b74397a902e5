// Which file this is and in what state: what a reader remembers at opening and compares before it believes bytes that
// it reads later. Another program may write into a file, cut it, or put another one in its place meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/file.h"

namespace memsys {

struct FileIdentity {
  uint64_t device = 0, inode = 0;
  int64_t size_bytes = 0;
  int64_t modified_ns = 0;  // since the epoch
};

// Of the opened file. Throws SpillError.
FileIdentity identity_of(const File& file);
// Of what has this name now; empty if nothing has, or it cannot be asked.
std::optional<FileIdentity> identity_at(const std::string& path);

// "its size went from 10 to 12 bytes", "it was written to", "another file took its name"; empty if nothing changed.
std::string describe_change(const FileIdentity& before, const FileIdentity& after);

}  // namespace memsys
