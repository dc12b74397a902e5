// Spill files leave no name behind and refuse unsafe folders; direct transfers are offered only where they work.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/bytes.h"
#include "csrc/io/fixture.h"

using namespace io_test;

namespace {

// The errno of the SpillError that `call` throws; also checks that its message names `wanted`.
int errno_of(const std::function<void()>& call, const std::string& wanted) {
  try {
    call();
  } catch (const SpillError& error) {
    CHECK(std::string(error.what()).find(wanted) != std::string::npos);
    return error.errno_value();
  }
  return 0;
}

int64_t entry_count(const std::string& folder) {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) count += entry.exists() || true;
  return count;
}

}  // namespace

TEST(spill_file_is_nameless_private_and_closed_on_exec) {
  const Folder folder;
  const auto file = File::make_spill(folder.path());
  CHECK_EQUAL(entry_count(folder.path()), 0);
  CHECK_EQUAL(file->path(), folder.path());
  CHECK_EQUAL(file->size(), 0);
  struct stat state = {};
  CHECK(::fstat(file->descriptor(), &state) == 0);
  CHECK_EQUAL(state.st_mode & 07777U, 0600U);
  CHECK_EQUAL(state.st_nlink, 0U);
  CHECK((::fcntl(file->descriptor(), F_GETFD) & FD_CLOEXEC) != 0);
  if (file->is_direct()) CHECK((::fcntl(file->direct_descriptor(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST(descriptors_return_to_where_they_were) {
  const Folder folder;
  const int64_t before = open_descriptor_count();
  for (int round = 0; round < 20; ++round) {
    const auto file = File::make_spill(folder.path());
    inspect_spill_folder(folder.path());
    CHECK_THROWS(File::make_spill(folder.path() + "/missing"), SpillError);
    CHECK_THROWS(File::open(folder.path(), FileMode::read_only), SpillError);
  }
  CHECK_EQUAL(open_descriptor_count(), before);
}

TEST(direct_descriptor_fits_only_what_is_aligned) {
  const Folder folder;
  const auto file = File::make_spill(folder.path());
  if (!file->is_direct()) SKIP("no O_DIRECT in " + folder.path());
  const int64_t unit = file->direct_alignment();
  CHECK(unit >= ::sysconf(_SC_PAGESIZE));
  const Block block(4 * unit);
  CHECK_EQUAL(file->descriptor_for(block.data(), 0, unit), file->direct_descriptor());
  CHECK_EQUAL(file->descriptor_for(block.data(), 3 * unit, 2 * unit), file->direct_descriptor());
  CHECK_EQUAL(file->descriptor_for(block.data() + 1, 0, unit), file->descriptor());
  CHECK_EQUAL(file->descriptor_for(block.data(), unit / 2, unit), file->descriptor());
  CHECK_EQUAL(file->descriptor_for(block.data(), 0, unit - 512), file->descriptor());
  CHECK((::fcntl(file->direct_descriptor(), F_GETFL) & O_DIRECT) != 0);
  const auto buffered = File::make_spill(folder.path(), DirectMode::off);
  CHECK(!buffered->is_direct());
  CHECK_EQUAL(buffered->descriptor_for(block.data(), 0, unit), buffered->descriptor());
}

TEST(unsafe_spill_folders_are_refused_with_the_reason) {
  const Folder folder;
  const std::string link = folder.path() + "/link", plain = folder.path() + "/plain", open = folder.path() + "/open";
  CHECK(::symlink(folder.path().c_str(), link.c_str()) == 0);
  std::ofstream(plain) << "x";
  std::filesystem::create_directory(open);
  CHECK(::chmod(open.c_str(), 0777) == 0);
  CHECK_EQUAL(errno_of([&] { File::make_spill(folder.path() + "/none"); }, "create it first"), ENOENT);
  CHECK_EQUAL(errno_of([&] { File::make_spill(plain); }, "not a file"), ENOTDIR);
  CHECK_EQUAL(errno_of([&] { File::make_spill(link); }, "real path"), ELOOP);
  CHECK_EQUAL(errno_of([&] { File::make_spill(link + "/"); }, "real path"), ELOOP);
  CHECK_EQUAL(errno_of([&] { File::make_spill(open); }, "chmod"), EPERM);
  CHECK_THROWS(File::make_spill(""), InputError);
  CHECK(::chmod(open.c_str(), 01777) == 0);
  CHECK(File::make_spill(open) != nullptr);
}

TEST(read_only_spill_folder_is_refused) {
  // /proc is a folder in which nobody, not even root, can create a file.
  const int error = errno_of([] { File::make_spill("/proc"); }, "/proc");
  CHECK(error != 0);
  const SpillFolderReport report = inspect_spill_folder("/proc");
  CHECK(report.exists && !report.writable);
  CHECK(report.message.find("/proc") != std::string::npos);
}

TEST(opening_takes_regular_files_only) {
  const Folder folder;
  const std::string path = folder.path() + "/data", link = folder.path() + "/link", pipe = folder.path() + "/pipe";
  std::ofstream(path) << std::string(10000, 'a');
  CHECK(::symlink(path.c_str(), link.c_str()) == 0);
  CHECK(::mkfifo(pipe.c_str(), 0600) == 0);
  const auto file = File::open(path, FileMode::read_only);
  CHECK_EQUAL(file->size(), 10000);
  CHECK_EQUAL(file->path(), path);
  CHECK_EQUAL(errno_of([&] { File::open(link, FileMode::read_only); }, link), ELOOP);
  CHECK_EQUAL(errno_of([&] { File::open(pipe, FileMode::read_only); }, pipe), EINVAL);
  CHECK_EQUAL(errno_of([&] { File::open(folder.path(), FileMode::read_only); }, "regular file"), EISDIR);
  CHECK_EQUAL(errno_of([&] { File::open(path + "x", FileMode::read_write); }, path + "x"), ENOENT);
  CHECK_THROWS(File::open("", FileMode::read_only), InputError);
  // The trial of O_DIRECT on an existing file only reads.
  File::open(path, FileMode::read_write);
  std::ifstream stream(path);
  CHECK(std::string(std::istreambuf_iterator<char>(stream), {}) == std::string(10000, 'a'));
}

TEST(reserve_backs_with_blocks_and_fails_without_keeping_any) {
  const Folder folder;
  const auto file = File::make_spill(folder.path());
  file->reserve(0);
  file->reserve(3 * kMiB);
  CHECK_EQUAL(file->size(), 3 * kMiB);
  file->truncate(kMiB);
  CHECK_EQUAL(file->size(), kMiB);
  file->reserve(1);
  CHECK_EQUAL(file->size(), kMiB);
  file->sync();
  CHECK_THROWS(file->reserve(-1), InputError);
  CHECK_THROWS(file->truncate(-1), InputError);
  const int64_t impossible = int64_t{1} << 55;
  const int error = errno_of([&] { file->reserve(impossible); }, "cannot reserve");
  CHECK(error == ENOSPC || error == EFBIG);
  CHECK_EQUAL(file->size(), kMiB);
}

TEST(folder_report_says_what_is_there) {
  const Folder folder;
  const SpillFolderReport good = inspect_spill_folder(folder.path());
  CHECK(good.exists && good.writable && !good.is_symlink);
  CHECK(good.free_bytes > 0 && good.total_bytes >= good.free_bytes);
  CHECK(!good.filesystem.empty());
  CHECK_EQUAL(good.has_direct, File::make_spill(folder.path())->is_direct());
  CHECK_EQUAL(entry_count(folder.path()), 0);
  const SpillFolderReport missing = inspect_spill_folder(folder.path() + "/none");
  CHECK(!missing.exists && !missing.writable);
  CHECK(missing.message.find("create it first") != std::string::npos);
  const std::string link = folder.path() + "/link";
  CHECK(::symlink(folder.path().c_str(), link.c_str()) == 0);
  const SpillFolderReport linked = inspect_spill_folder(link);
  CHECK(linked.is_symlink && !linked.writable);
}

TEST(folder_report_knows_tmpfs) {
  const SpillFolderReport report = inspect_spill_folder("/dev/shm");
  if (!report.writable) SKIP("/dev/shm cannot be written: " + report.message);
  CHECK_EQUAL(report.filesystem, std::string("tmpfs"));
  CHECK(report.is_tmpfs);
  CHECK(report.message.find("memory") != std::string::npos);
}
