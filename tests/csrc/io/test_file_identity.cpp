// Whatever happens to a file behind its reader's back is seen and said; and what the reader brought into the page cache
// leaves it again.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "csrc/io/cached_pages.h"
#include "csrc/io/fixture.h"
#include "io/file_identity.h"

using namespace io_test;

namespace {

constexpr int64_t kBytes = 64 * 4096 + 100;

std::string write_file(const Folder& folder, const std::string& name = "file") {
  const std::string path = folder.path() + "/" + name;
  std::ofstream(path, std::ios::binary) << std::string(static_cast<size_t>(kBytes), 'x');
  return path;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(identity_stays_while_nothing_happens) {
  const Folder folder;
  const std::string path = write_file(folder);
  const auto file = File::open(path, FileMode::read_only);
  const FileIdentity before = identity_of(*file);
  CHECK_EQUAL(before.size_bytes, kBytes);
  CHECK_EQUAL(describe_change(before, identity_of(*file)), std::string());
  CHECK_EQUAL(describe_change(before, identity_at(path).value()), std::string());
  CHECK(!identity_at(folder.path() + "/none"));
}

TEST(identity_tells_what_changed) {
  const Folder folder;
  const std::string path = write_file(folder);
  const auto file = File::open(path, FileMode::read_only);
  const FileIdentity before = identity_of(*file);
  std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::nanoseconds(1));
  CHECK_EQUAL(describe_change(before, identity_of(*file)), std::string("it was written to"));
  std::filesystem::resize_file(path, 5000);
  CHECK_EQUAL(describe_change(before, identity_of(*file)), std::string("its size went from 262244 to 5000 bytes"));
  std::filesystem::rename(write_file(folder, "other"), path);
  CHECK(contains(describe_change(before, identity_at(path).value()), "another file took its name"));
}

TEST(pages_of_a_range_leave_the_cache) {
  const Folder folder;
  if (is_memory(folder.path())) SKIP("files in " + folder.path() + " are memory themselves");
  const std::string path = write_file(folder);
  const auto file = File::open(path, FileMode::read_write, DirectMode::off);
  file->sync();
  const Block block(kBytes);
  CHECK_EQUAL(::pread(file->descriptor(), block.data(), kBytes, 0), ssize_t{kBytes});
  CHECK_EQUAL(cached_page_count(path), 65);
  file->drop_cached(5, kBytes - 10);  // the pages around it, the ragged last one too
  CHECK_EQUAL(cached_page_count(path), 0);
}

TEST(reads_without_read_ahead_bring_in_what_was_asked_for) {
  const Folder folder;
  if (is_memory(folder.path())) SKIP("files in " + folder.path() + " are memory themselves");
  const std::string path = write_file(folder);
  const auto file = File::open(path, FileMode::read_write, DirectMode::off);
  file->sync();
  file->drop_cached(0, kBytes);
  file->stop_read_ahead();
  const Block block(8192);
  CHECK_EQUAL(::pread(file->descriptor(), block.data(), 8192, 0), ssize_t{8192});
  CHECK_EQUAL(cached_page_count(path), 2);
}
