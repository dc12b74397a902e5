// Exchanges numbers by ones that are near an edge, or that fit the others: whole pages, as many values as units.
#include <algorithm>
#include <cstring>

#include "csrc/fuzz/random.h"
#include "csrc/fuzz/target.h"
#include "plan/read_pieces.h"

using memsys::kFilePageBytes;

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Random random(seed);
  size = size / 8 * 8;
  if (size < 512 && size + 40 <= max_size && (size == 0 || random.one_in(3))) {
    const int64_t page = kFilePageBytes, unit = page * static_cast<int64_t>(1 + random.below(4));
    const int64_t count = static_cast<int64_t>(random.below(9)), offset = page * static_cast<int64_t>(random.below(99));
    const int64_t length = std::max<int64_t>(0, count * unit - static_cast<int64_t>(random.below(4096)));
    const int64_t fresh[] = {int64_t{1} << 40, offset, length, unit, count};
    const size_t skipped = size == 0 ? 0 : 1;
    std::memcpy(data + size, fresh + skipped, sizeof(fresh) - 8 * skipped);
    size += sizeof(fresh) - 8 * skipped;
  }
  for (size_t change = random.below(3); change > 0; --change) {
    uint64_t value = fuzz::edge_number(random);
    if (random.one_in(2)) value = value / kFilePageBytes * kFilePageBytes;
    std::memcpy(data + 8 * random.below(size / 8), &value, 8);
  }
  return size;
}
