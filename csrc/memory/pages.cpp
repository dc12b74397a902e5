// See pages.h.
#include "memory/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "base/bytes.h"
#include "base/error.h"

namespace memsys {
namespace {

// MADV_POPULATE_WRITE of Linux 5.14, by number because older C libraries do not name it.
constexpr int kPopulateWrite = 23;

[[noreturn]] void throw_refused(int64_t bytes, Tier tier, int errno_value) {
  const int64_t free_bytes = sysconf(_SC_AVPHYS_PAGES) * page_bytes();
  throw BudgetError(std::string(tier_name(tier)) + " memory: wanted " + format_bytes(bytes) +
                    ", but the system says '" + std::generic_category().message(errno_value) + "' (" +
                    format_bytes(free_bytes) +
                    " are free); lower host_budget so that more goes to files, or end other processes");
}

}  // namespace

int64_t page_bytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

void* map_pages(int64_t bytes, Tier tier, ForkView fork) {
  MEMSYS_EXPECT(
      bytes > 0, InputError,
      std::string(tier_name(tier)) + " memory: asked for " + std::to_string(bytes) + " bytes; ask for at least one");
  checked_add(bytes, page_bytes() + kHugePageBytes);
  const int64_t kept_bytes = align_up(bytes, page_bytes());
  const int64_t extra_bytes = bytes >= kHugePageBytes ? kHugePageBytes : 0;
  void* mapped = mmap(nullptr, static_cast<size_t>(kept_bytes + extra_bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw_refused(bytes, tier, errno);
  char* begin = static_cast<char*>(mapped);
  if (extra_bytes > 0) {  // cut the aligned part out of the larger mapping
    const auto misfit = static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kHugePageBytes);
    const int64_t head_bytes = misfit == 0 ? 0 : kHugePageBytes - misfit;
    if (head_bytes > 0) munmap(begin, static_cast<size_t>(head_bytes));
    begin += head_bytes;
    if (head_bytes < extra_bytes) munmap(begin + kept_bytes, static_cast<size_t>(extra_bytes - head_bytes));
    madvise(begin, static_cast<size_t>(kept_bytes), MADV_HUGEPAGE);  // advice: a kernel without it is right too
  }
  madvise(begin, static_cast<size_t>(kept_bytes), MADV_DONTDUMP);
  if (fork == ForkView::zeros) madvise(begin, static_cast<size_t>(kept_bytes), MADV_WIPEONFORK);
  return begin;
}

void unmap_pages(void* pointer, int64_t bytes) noexcept {
  munmap(pointer, static_cast<size_t>(align_up(bytes, page_bytes())));
}

void touch_pages(void* pointer, int64_t bytes, Tier tier) {
  const int64_t whole_bytes = align_up(bytes, page_bytes());
  int outcome = 0;
  do {
    outcome = madvise(pointer, static_cast<size_t>(whole_bytes), kPopulateWrite);
  } while (outcome != 0 && (errno == EINTR || errno == EAGAIN));
  if (outcome == 0) return;
  if (errno == ENOMEM) throw_refused(bytes, tier, errno);
  // A kernel older than 5.14: the pages are zero and nobody else's yet, so writing a zero to each changes nothing.
  auto* bytes_of = static_cast<volatile char*>(pointer);
  for (int64_t offset = 0; offset < whole_bytes; offset += page_bytes()) bytes_of[offset] = 0;
}

}  // namespace memsys
