// See file.h. The rules of a spill folder are in spill_folder.h, the trial of O_DIRECT in direct_access.h.
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/bytes.h"
#include "io/descriptor.h"
#include "io/direct_access.h"
#include "io/spill_folder.h"
#include "io/system_error.h"

namespace memsys {
namespace {

// Repeats a call that a signal interrupted; returns 0 or the errno.
template <typename Call>
int errno_of(Call call) {
  while (call() != 0)
    if (errno != EINTR) return errno;
  return 0;
}

}  // namespace

std::shared_ptr<File> File::open(const std::string& path, FileMode mode, DirectMode direct) {
  MEMSYS_EXPECT(!path.empty(), InputError, "the file's name is empty: name an existing file");
  const int access = mode == FileMode::read_only ? O_RDONLY : O_RDWR;
  const std::string what = "cannot open file '" + path + "'";
  // O_NONBLOCK: opening a pipe by mistake must be an error, not a wait.
  Descriptor descriptor(::open(path.c_str(), access | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!descriptor.is_open()) throw spill_error(errno, what, -1);
  struct stat state = {};
  if (::fstat(descriptor.get(), &state) != 0) throw spill_error(errno, what, -1);
  if (!S_ISREG(state.st_mode))
    throw SpillError(S_ISDIR(state.st_mode) ? EISDIR : EINVAL, what + ": it is no regular file; name a regular file");
  DirectAccess access_past_cache;
  if (direct == DirectMode::automatic)
    access_past_cache = open_direct(descriptor.get(), access | O_NONBLOCK, DirectTrial::read);
  const std::shared_ptr<File> file(new File);
  file->path_ = path;
  file->descriptor_ = descriptor.release();
  file->direct_alignment_ = access_past_cache.alignment;
  file->direct_descriptor_ = access_past_cache.descriptor.release();
  return file;
}

std::shared_ptr<File> File::make_spill(const std::string& folder, DirectMode direct) {
  NamelessFile nameless = create_nameless(open_spill_folder(folder), folder);
  DirectAccess access;
  if (direct == DirectMode::automatic)
    access = open_direct(nameless.descriptor.get(), O_RDWR, DirectTrial::write_and_read);
  const std::shared_ptr<File> file(new File);
  file->path_ = folder;
  file->descriptor_ = nameless.descriptor.release();
  file->direct_alignment_ = access.alignment;
  file->direct_descriptor_ = access.descriptor.release();
  return file;
}

File::~File() {
  if (direct_descriptor_ >= 0) ::close(direct_descriptor_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

int File::descriptor_for(const void* pointer, int64_t offset, int64_t bytes) const {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(offset | bytes);
  const bool is_aligned = (bits & static_cast<uintptr_t>(direct_alignment_ - 1)) == 0;
  return is_direct() && is_aligned ? direct_descriptor_ : descriptor_;
}

int64_t File::size() const {
  struct stat state = {};
  if (::fstat(descriptor_, &state) != 0) throw spill_error(errno, "cannot ask the size of '" + path_ + "'", -1);
  return state.st_size;
}

void File::reserve(int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "cannot reserve " + std::to_string(bytes) + " bytes: ask for 0 or more");
  const int64_t size_before = size();
  if (bytes <= size_before && bytes == 0) return;  // fallocate refuses an empty range
  int error = errno_of([&] { return ::fallocate(descriptor_, 0, 0, bytes); });
  if (error == EOPNOTSUPP && bytes <= size_before) return;
  if (error == EOPNOTSUPP) error = errno_of([&] { return ::ftruncate(descriptor_, bytes); });
  if (error == 0) return;
  // What a failed fallocate got hold of would fill the disk for everybody; the first error is the one to tell.
  const SpillError failure =
      spill_error(error, "cannot reserve " + format_bytes(bytes) + " in '" + path_ + "'", descriptor_);
  static_cast<void>(errno_of([&] { return ::ftruncate(descriptor_, size_before); }));
  throw failure;
}

void File::truncate(int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "cannot cut a file to " + std::to_string(bytes) + " bytes: ask for 0 or more");
  const int error = errno_of([&] { return ::ftruncate(descriptor_, bytes); });
  if (error != 0)
    throw spill_error(error, "cannot set the size of '" + path_ + "' to " + format_bytes(bytes), descriptor_);
}

void File::sync() {
  const int error = errno_of([&] { return ::fdatasync(descriptor_); });
  if (error != 0) throw spill_error(error, "cannot write '" + path_ + "' through to its disk", descriptor_);
}

// Both are advice: a file system that knows neither is right all the same.
void File::drop_cached(int64_t offset, int64_t bytes) const noexcept {
  // A range that ends inside a page would leave that page where it is.
  const int64_t page_bytes = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = align_down(offset, page_bytes);
  static_cast<void>(
      ::posix_fadvise(descriptor_, begin, align_up(offset + bytes, page_bytes) - begin, POSIX_FADV_DONTNEED));
}

void File::stop_read_ahead() const noexcept {
  static_cast<void>(::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM));
}

}  // namespace memsys
