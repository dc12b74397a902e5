// See system_error.h.
#include "io/system_error.h"

#include <sys/statvfs.h>

#include <cerrno>
#include <system_error>

#include "base/bytes.h"

namespace memsys {

std::string describe_errno(int errno_value) {
  return std::generic_category().message(errno_value) + " (errno " + std::to_string(errno_value) + ")";
}

std::string describe_free_space(int descriptor) {
  struct statvfs state = {};
  if (descriptor < 0 || ::fstatvfs(descriptor, &state) != 0) return "free space unknown";
  return format_bytes(checked_multiply(static_cast<int64_t>(state.f_bavail), static_cast<int64_t>(state.f_frsize))) +
         " free on its disk";
}

std::string remedy_for(int errno_value) {
  switch (errno_value) {
    case ENOSPC:
    case EDQUOT:
      return "free space there, name a folder on a larger disk, or lower the disk budget";
    case EROFS:
    case EACCES:
    case EPERM:
      return "name a folder that this user may write to";
    case ENOENT:
      return "create it first, or name one that exists";
    case ENOTDIR:
      return "name a folder, not a file";
    case ELOOP:
      return "name the real path instead of a symbolic link";
    case EMFILE:
    case ENFILE:
      return "close files, or raise the limit of open files (ulimit -n)";
    case EFBIG:
      return "raise the file size limit (ulimit -f), or name a folder on a file system with larger files";
    case EIO:
      return "check the disk (dmesg, smartctl), or name a folder on another one";
    default:
      return "check the file system, or name a folder on another one";
  }
}

SpillError spill_error(int errno_value, const std::string& what, int descriptor) {
  return SpillError(errno_value, what + ": " + describe_errno(errno_value) + "; " + describe_free_space(descriptor) +
                                     "; " + remedy_for(errno_value));
}

}  // namespace memsys
