// See tensor_file.h.
#include "io/tensor_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "io/system_error.h"

namespace memsys {
namespace {

// Appends the range [target.size(), end) of the file to target.
void read_up_to(const File& file, int64_t end, std::vector<uint8_t>& target) {
  auto at = static_cast<int64_t>(target.size());
  target.resize(static_cast<size_t>(end));
  const std::string what = "reading the header of '" + file.path() + "' at byte ";
  while (at < end) {
    const ssize_t moved = ::pread(file.descriptor(), target.data() + at, static_cast<size_t>(end - at), at);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) throw spill_error(errno, what + std::to_string(at), file.descriptor());
    if (moved == 0)
      throw CorruptionError(what + std::to_string(at) + ": wanted " + std::to_string(end - at) +
                            " bytes, found the end of the file; something cut it while it was read, so stop that "
                            "and write or download the file again");
    at += moved;
  }
}

}  // namespace

TensorFile read_tensor_header(const File& file) {
  const int64_t file_bytes = file.size();
  std::vector<uint8_t> start;
  read_up_to(file, std::min(file_bytes, kHeaderPrefixBytes), start);
  const int64_t header_bytes = tensor_header_bytes(file.path(), start, file_bytes);
  if (header_bytes > static_cast<int64_t>(start.size())) read_up_to(file, header_bytes, start);
  return parse_tensor_header(file.path(), start, file_bytes);
}

}  // namespace memsys
