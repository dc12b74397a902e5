// What a forked worker (a data loader's) sees of our pages: it may touch them, and neither it nor the parent pays for
// a second copy.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "csrc/check.h"
#include "memory/pages.h"
#include "memory/resources.h"

using namespace memsys;

namespace {

constexpr int64_t kBytes = int64_t{1} << 20;  // below the size of a huge page, so that each page faults by itself

// Not instrumented: a sanitizer's own shadow pages would be copied, and counted, beside ours.
__attribute__((no_sanitize("thread"), no_sanitize("address"))) void write_every_page(char* bytes) {
  for (int64_t offset = 0; offset < kBytes; offset += 4096) const_cast<volatile char*>(bytes)[offset] = 2;
}

int64_t fault_count() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

}  // namespace

TEST(forked_child_may_touch_our_pages_and_changes_nothing_for_the_parent) {
  const auto resource = make_mmap_resource();
  char* bytes = static_cast<char*>(resource->allocate(kBytes));
  std::memset(bytes, 7, kBytes);
  const pid_t child = fork();
  if (child == 0) {
    const bool found_zeros = bytes[0] == 0 && bytes[kBytes - 1] == 0;
    bytes[0] = 9;
    _exit(found_zeros && bytes[0] == 9 ? 0 : 1);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(bytes[0] == 7 && bytes[kBytes - 1] == 7);
  resource->deallocate(bytes, kBytes);
}

// Copy-on-write would copy each page at the parent's next write, while the child still holds the old one.
TEST(parent_writes_on_without_copying_pages_for_its_child) {
  const auto resource = make_mmap_resource();
  char* bytes = static_cast<char*>(resource->allocate(kBytes));
  std::memset(bytes, 1, kBytes);
  int link[2];
  CHECK_EQUAL(pipe(link), 0);
  const pid_t child = fork();
  if (child == 0) {
    char ignored = 0;
    close(link[1]);
    _exit(read(link[0], &ignored, 1) == 0 ? 0 : 1);  // lives until the parent closes its end
  }
  const int64_t faults_before = fault_count();
  write_every_page(bytes);
  const int64_t faults = fault_count() - faults_before;
  close(link[0]);
  close(link[1]);
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(faults < kBytes / page_bytes() / 4);
  resource->deallocate(bytes, kBytes);
}
