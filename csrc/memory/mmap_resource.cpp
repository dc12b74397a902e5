// See resources.h: pageable host memory straight from the system, so that giving it back really gives it back
// (a heap keeps freed blocks for itself).
#include "memory/pages.h"
#include "memory/resources.h"

namespace memsys {
namespace {

class MmapResource final : public MemoryResource {
 public:
  void* allocate(int64_t bytes) override { return map_pages(bytes, Tier::pageable); }
  void deallocate(void* pointer, int64_t bytes) noexcept override { unmap_pages(pointer, bytes); }
  Tier tier() const override { return Tier::pageable; }
};

}  // namespace

std::shared_ptr<MemoryResource> make_mmap_resource() { return std::make_shared<MmapResource>(); }

}  // namespace memsys
