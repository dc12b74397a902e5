// How many pages of a file the page cache holds, for the tests of what reads past it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/check.h"
#include "io/descriptor.h"

namespace io_test {

inline int64_t cached_page_count(const std::string& path) {
  const memsys::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  CHECK(file.is_open());
  const auto bytes = static_cast<size_t>(std::filesystem::file_size(path));
  const auto page_bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  CHECK(mapped != MAP_FAILED);
  std::vector<unsigned char> pages((bytes + page_bytes - 1) / page_bytes);
  const int outcome = ::mincore(mapped, bytes, pages.data());
  ::munmap(mapped, bytes);
  CHECK_EQUAL(outcome, 0);
  int64_t count = 0;
  for (const unsigned char page : pages) count += page & 1;
  return count;
}

// Where the files are memory themselves, there is no cache to keep them out of.
inline bool is_memory(const std::string& folder) {
  constexpr decltype(statfs::f_type) kTmpfsMagic = 0x01021994, kRamfsMagic = 0x858458F6;
  struct statfs state = {};
  CHECK(::statfs(folder.c_str(), &state) == 0);
  return state.f_type == kTmpfsMagic || state.f_type == kRamfsMagic;
}

}  // namespace io_test
