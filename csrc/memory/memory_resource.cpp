// See memory_resource.h: the names of the tiers, as messages and reports print them.
#include "memory/memory_resource.h"

#include "base/error.h"

namespace memsys {

const char* tier_name(Tier tier) {
  switch (tier) {
    case Tier::device:
      return "device";
    case Tier::pinned:
      return "pinned";
    case Tier::pageable:
      return "pageable";
    case Tier::file:
      return "file";
  }
  throw InputError("tier " + std::to_string(static_cast<int>(tier)) + " is none of device, pinned, pageable, file");
}

}  // namespace memsys
