// See resources.h: pageable host memory straight from the system, so that giving it back really gives it back
// (a heap keeps freed blocks for itself).
#include "memory/pages.h"
#include "memory/resources.h"

namespace memsys {
namespace {

class MmapResource final : public MemoryResource {
 public:
  explicit MmapResource(ForkView fork) : fork_(fork) {}
  void* allocate(int64_t bytes) override { return map_pages(bytes, Tier::pageable, fork_); }
  void deallocate(void* pointer, int64_t bytes) noexcept override { unmap_pages(pointer, bytes); }
  Tier tier() const override { return Tier::pageable; }

 private:
  const ForkView fork_;
};

}  // namespace

std::shared_ptr<MemoryResource> make_mmap_resource(ForkView fork) { return std::make_shared<MmapResource>(fork); }

}  // namespace memsys
