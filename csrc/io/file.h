// A file of bytes at offsets, read and written past the page cache (O_DIRECT) where that works. Opening decides
// once which alignment direct transfers need; callers cut a transfer at direct_alignment() and send only aligned
// pieces through the direct descriptor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace memsys {

enum class FileMode { read_only, read_write };
enum class DirectMode { automatic, off };

class File {
 public:
  // Opens an existing regular file; refuses symbolic links (O_NOFOLLOW). Throws SpillError.
  static std::shared_ptr<File> open(const std::string& path, FileMode mode, DirectMode direct = DirectMode::automatic);
  // A nameless spill file in `folder`: O_TMPFILE, or created and unlinked at once; mode 0600. Refuses a missing
  // folder, a folder that is a symbolic link, and a world-writable folder without the sticky bit.
  static std::shared_ptr<File> make_spill(const std::string& folder, DirectMode direct = DirectMode::automatic);

  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }  // for messages; a spill file gives its folder
  int descriptor() const { return descriptor_; }     // through the page cache
  // -1: no O_DIRECT here. The alignment is a page at least, so that buffered and direct writes never share one.
  // Pointer, offset and bytes of a direct transfer are multiples of direct_alignment().
  int direct_descriptor() const { return direct_descriptor_; }
  int64_t direct_alignment() const { return direct_alignment_; }
  bool is_direct() const { return direct_descriptor_ >= 0; }
  // The descriptor that fits these three: the direct one if all are aligned, else the buffered one.
  int descriptor_for(const void* pointer, int64_t offset, int64_t bytes) const;

  int64_t size() const;  // fstat
  // Makes the range [0, bytes) backed by disk blocks (fallocate); throws SpillError(ENOSPC) when it can't.
  void reserve(int64_t bytes);
  void truncate(int64_t bytes);
  void sync();  // fdatasync
  // Lets the page cache forget the pages around the range, where nobody has them mapped or dirty. Advice: never throws.
  void drop_cached(int64_t offset, int64_t bytes) const noexcept;
  // Reads through the page cache bring in what was asked for and nothing after it.
  void stop_read_ahead() const noexcept;

 private:
  File() = default;
  std::string path_;
  int descriptor_ = -1;
  int direct_descriptor_ = -1;
  int64_t direct_alignment_ = 1;
};

// What `doctor` prints of a spill folder.
struct SpillFolderReport {
  bool exists = false, writable = false, is_symlink = false, is_tmpfs = false, has_tmpfile = false, has_direct = false;
  int64_t free_bytes = 0, total_bytes = 0, direct_alignment = 0;
  std::string filesystem, message;
};
SpillFolderReport inspect_spill_folder(const std::string& folder);

}  // namespace memsys
