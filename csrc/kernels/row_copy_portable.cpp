// Rows by memcpy, on any CPU: what the other backends are held against.
#include <cstring>

#define MEMSYS_ISA
#include "kernels/row_copy_loop.h"

namespace memsys {
namespace {

struct Registers {
  int64_t row_bytes;

  template <StorePath>
  MEMSYS_INLINE void copy(char* target, const char* source) const {
    std::memcpy(target, source, static_cast<size_t>(row_bytes));
  }
};

void gather(const RowCopy& copy, int64_t begin, int64_t end) {
  gather_rows<StorePath::cached>(copy, begin, end, Registers{copy.row_bytes});
}

}  // namespace

const RowCopyBackend& portable_row_copy() {
  static const RowCopyBackend backend{"portable", [] { return true; }, gather, find_bad};
  return backend;
}

}  // namespace memsys
