// See spill_folder.h.
#include "io/spill_folder.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "base/bytes.h"
#include "io/direct_access.h"
#include "io/file.h"
#include "io/system_error.h"

namespace memsys {
namespace {

// With a trailing slash the system would follow a symbolic link in spite of O_NOFOLLOW.
std::string without_trailing_slashes(std::string folder) {
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return folder;
}

bool is_symbolic_link(const std::string& path) {
  struct stat state = {};
  return ::lstat(path.c_str(), &state) == 0 && S_ISLNK(state.st_mode);
}

// A file that had a name for a moment: for file systems without O_TMPFILE (overlay on old kernels, NFS, FUSE).
Descriptor create_and_unlink(const Descriptor& folder) {
  constexpr int kAttemptCount = 16;
  for (int attempt = 0; attempt < kAttemptCount; ++attempt) {
    uint64_t random = 0;
    if (::getrandom(&random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) continue;
    char name[64];
    std::snprintf(name, sizeof name, ".memsys-spill-%016" PRIx64, random);
    Descriptor file(::openat(folder.get(), name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.is_open() && errno == EEXIST) continue;
    if (file.is_open() && ::unlinkat(folder.get(), name, 0) != 0) return Descriptor();
    return file;
  }
  errno = EEXIST;
  return Descriptor();
}

std::string name_of_filesystem(uint64_t magic) {
  constexpr struct {
    uint64_t magic;
    const char* name;
  } kKnown[] = {{0xef53, "ext4"},         {0x58465342, "xfs"},     {0x9123683e, "btrfs"}, {0x01021994, "tmpfs"},
                {0x858458f6, "ramfs"},    {0x794c7630, "overlay"}, {0x6969, "nfs"},       {0x65735546, "fuse"},
                {0x2fc12fc1, "zfs"},      {0xf2f52010, "f2fs"},    {0xff534d42, "cifs"},  {0xfe534d42, "smb2"},
                {0x01021997, "9p"},       {0x0bd00bd0, "lustre"},  {0x47504653, "gpfs"},  {0x00c36400, "ceph"},
                {0xca451a4e, "bcachefs"}, {0x4d44, "vfat"},        {0x2011bab0, "exfat"}, {0x73717368, "squashfs"}};
  for (const auto& entry : kKnown)
    if (entry.magic == magic) return entry.name;
  char text[32];
  std::snprintf(text, sizeof text, "type 0x%" PRIx64, magic);
  return text;
}

}  // namespace

Descriptor open_spill_folder(const std::string& folder) {
  MEMSYS_EXPECT(!folder.empty(), InputError, "the spill folder's name is empty: name a folder on a disk");
  const std::string path = without_trailing_slashes(folder);
  const std::string what = "cannot use spill folder '" + folder + "'";
  if (is_symbolic_link(path)) throw spill_error(ELOOP, what + ", which is a symbolic link", -1);
  Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!descriptor.is_open()) throw spill_error(errno, what, -1);
  struct stat state = {};
  if (::fstat(descriptor.get(), &state) != 0) throw spill_error(errno, what, -1);
  if ((state.st_mode & S_IWOTH) != 0 && (state.st_mode & S_ISVTX) == 0)
    throw SpillError(EPERM, what + ": everybody may write to it and it lacks the sticky bit, so that others could " +
                                "replace files in it; run chmod o-w or chmod +t on it, or name another folder");
  return descriptor;
}

NamelessFile create_nameless(const Descriptor& folder, const std::string& name_of_folder) {
  // O_EXCL: nobody can give the file a name later.
  Descriptor file(::openat(folder.get(), ".", O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
  if (file.is_open()) return {std::move(file), NamelessWay::tmpfile};
  // Kernels and file systems that do not know O_TMPFILE report one of these.
  if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL || errno == ENOENT) file = create_and_unlink(folder);
  if (!file.is_open())
    throw spill_error(errno, "cannot create a spill file in folder '" + name_of_folder + "'", folder.get());
  return {std::move(file), NamelessWay::unlinked};
}

SpillFolderReport inspect_spill_folder(const std::string& folder) {
  SpillFolderReport report;
  const std::string path = without_trailing_slashes(folder);
  struct statfs kind = {};
  struct statvfs space = {};
  report.is_symlink = is_symbolic_link(path);
  if (::statfs(path.c_str(), &kind) == 0) {
    report.exists = true;
    report.filesystem = name_of_filesystem(static_cast<uint64_t>(kind.f_type));
    report.is_tmpfs = report.filesystem == "tmpfs" || report.filesystem == "ramfs";
  }
  if (::statvfs(path.c_str(), &space) == 0) {
    const auto block_bytes = static_cast<int64_t>(space.f_frsize);
    report.free_bytes = static_cast<int64_t>(space.f_bavail) * block_bytes;
    report.total_bytes = static_cast<int64_t>(space.f_blocks) * block_bytes;
  }
  try {
    const Descriptor opened = open_spill_folder(folder);
    const NamelessFile file = create_nameless(opened, folder);
    report.writable = true;
    report.has_tmpfile = file.way == NamelessWay::tmpfile;
    const DirectAccess direct = open_direct(file.descriptor.get(), O_RDWR, DirectTrial::write_and_read);
    report.has_direct = direct.descriptor.is_open();
    report.direct_alignment = report.has_direct ? direct.alignment : 0;
    report.message = report.is_tmpfs ? "'" + folder + "' is " + report.filesystem +
                                           ", which is memory: name a folder on a disk to save memory"
                                     : "usable";
  } catch (const Error& error) {
    report.message = error.what();
  }
  return report;
}

}  // namespace memsys
