// See direct_access.h.
#include "io/direct_access.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace memsys {
namespace {

// The kernel's statx answer as words, because libc headers older than Linux 6.1 lack these two fields.
constexpr unsigned kStatxDirectAlignment = 0x2000;
constexpr size_t kStatxWordCount = 64, kMaskWord = 0, kMemoryAlignmentWord = 38, kOffsetAlignmentWord = 39;

// 0: the file system says that it has no direct transfers. Never under a page, even where the disk would take 512
// bytes: a buffered write rewrites its whole page, and would undo a direct write to another part of that page.
int64_t find_alignment(int descriptor) {
  const int64_t page_bytes = ::sysconf(_SC_PAGESIZE);
  uint32_t words[kStatxWordCount] = {};
  if (::syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH, kStatxDirectAlignment, words) != 0) return page_bytes;
  if ((words[kMaskWord] & kStatxDirectAlignment) == 0) return page_bytes;
  if (words[kMemoryAlignmentWord] == 0 || words[kOffsetAlignmentWord] == 0) return 0;
  return std::max<int64_t>({page_bytes, words[kMemoryAlignmentWord], words[kOffsetAlignmentWord]});
}

bool try_transfer(int direct, int64_t alignment, DirectTrial trial) {
  const auto bytes = static_cast<size_t>(alignment);
  const std::unique_ptr<void, decltype(&std::free)> buffer(std::aligned_alloc(bytes, bytes), &std::free);
  if (!buffer) return false;
  if (trial == DirectTrial::read) return ::pread(direct, buffer.get(), bytes, 0) >= 0;
  const std::string pattern(bytes, '\x5a');
  std::memcpy(buffer.get(), pattern.data(), bytes);
  if (::pwrite(direct, buffer.get(), bytes, 0) != static_cast<ssize_t>(bytes)) return false;
  std::memset(buffer.get(), 0, bytes);
  if (::pread(direct, buffer.get(), bytes, 0) != static_cast<ssize_t>(bytes)) return false;
  return std::memcmp(buffer.get(), pattern.data(), bytes) == 0;
}

}  // namespace

DirectAccess open_direct(int descriptor, int access_flags, DirectTrial trial) {
  const int64_t alignment = find_alignment(descriptor);
  if (alignment == 0) return {};
  // A spill file has no name left to open; its entry under /proc still leads to it.
  const std::string name = "/proc/self/fd/" + std::to_string(descriptor);
  Descriptor direct(::open(name.c_str(), access_flags | O_DIRECT | O_CLOEXEC));
  if (!direct.is_open()) return {};
  const bool works = try_transfer(direct.get(), alignment, trial);
  if (trial == DirectTrial::write_and_read && ::ftruncate(descriptor, 0) != 0) return {};
  if (!works) return {};
  return {std::move(direct), alignment};
}

}  // namespace memsys
