// See small_memory.h.
#include "base/small_memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>

namespace memsys {
namespace {

constexpr std::size_t kUnit = 16, kFineBytes = 512, kLargestBytes = 16384, kChunkBytes = std::size_t{256} << 10;
constexpr std::size_t kFineCount = kFineBytes / kUnit;
constexpr std::size_t kClassCount = kFineCount + 5;  // 1, 2, 4, 8 and 16 KiB

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kIsPooled = false;
#else
constexpr bool kIsPooled = true;
#endif

struct Free {
  Free* next;
};

struct Pool {
  std::mutex mutex;
  Free* free[kClassCount] = {};
  char *begin = nullptr, *end = nullptr;  // the rest of the newest chunk
};

// Never destroyed: objects may outlive every static destructor. A forked child may free what it inherited, so no
// other thread holds the lock during a fork.
Pool& pool() {
  static Pool* instance = [] {
    auto* made = new Pool;
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return made;
  }();
  return *instance;
}

std::size_t class_of(std::size_t bytes) {
  if (bytes <= kFineBytes) return (std::max<std::size_t>(bytes, 1) + kUnit - 1) / kUnit - 1;
  return kFineCount + static_cast<std::size_t>(std::bit_width((bytes - 1) / kFineBytes)) - 1;
}

std::size_t bytes_of(std::size_t index) {
  return index < kFineCount ? (index + 1) * kUnit : kFineBytes << (index - kFineCount + 1);
}

}  // namespace

void* small_allocate(std::size_t bytes) {
  if (!kIsPooled || bytes > kLargestBytes) return ::operator new(bytes);
  const std::size_t index = class_of(bytes), size = bytes_of(index);
  Pool& from = pool();
  const std::lock_guard lock(from.mutex);
  if (Free* found = from.free[index]) {
    from.free[index] = found->next;
    return found;
  }
  if (static_cast<std::size_t>(from.end - from.begin) < size) {
    void* chunk = mmap(nullptr, kChunkBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED) throw std::bad_alloc();
    from.begin = static_cast<char*>(chunk);
    from.end = from.begin + kChunkBytes;
  }
  void* taken = from.begin;
  from.begin += size;
  return taken;
}

void small_free(void* pointer, std::size_t bytes) noexcept {
  if (!kIsPooled || bytes > kLargestBytes) return ::operator delete(pointer);
  const std::size_t index = class_of(bytes);
  Pool& to = pool();
  const std::lock_guard lock(to.mutex);
  to.free[index] = new (pointer) Free{to.free[index]};
}

}  // namespace memsys
