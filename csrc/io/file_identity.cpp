// See file_identity.h.
#include "io/file_identity.h"

#include <sys/stat.h>

#include <cerrno>

#include "io/system_error.h"

namespace memsys {
namespace {

constexpr int64_t kNanosecondsPerSecond = 1'000'000'000;

FileIdentity identity_in(const struct stat& state) {
  return {static_cast<uint64_t>(state.st_dev), static_cast<uint64_t>(state.st_ino), state.st_size,
          state.st_mtim.tv_sec * kNanosecondsPerSecond + state.st_mtim.tv_nsec};
}

}  // namespace

FileIdentity identity_of(const File& file) {
  struct stat state = {};
  if (::fstat(file.descriptor(), &state) != 0)
    throw spill_error(errno, "cannot ask the state of '" + file.path() + "'", -1);
  return identity_in(state);
}

std::optional<FileIdentity> identity_at(const std::string& path) {
  struct stat state = {};
  if (::stat(path.c_str(), &state) != 0) return std::nullopt;
  return identity_in(state);
}

std::string describe_change(const FileIdentity& before, const FileIdentity& after) {
  if (before.device != after.device || before.inode != after.inode)
    return "another file took its name (inode " + std::to_string(before.inode) + ", now " +
           std::to_string(after.inode) + ")";
  if (before.size_bytes != after.size_bytes)
    return "its size went from " + std::to_string(before.size_bytes) + " to " + std::to_string(after.size_bytes) +
           " bytes";
  if (before.modified_ns != after.modified_ns) return "it was written to";
  return "";
}

}  // namespace memsys
