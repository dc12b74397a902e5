// Chooses the backend once, at the first copy, by asking the CPU.
#include "kernels/row_copy.h"

#include <array>

namespace memsys {
namespace {

const RowCopyBackend& choose() {
  for (const RowCopyBackend& backend : row_copy_backends())
    if (backend.is_supported()) return backend;
  return portable_row_copy();
}

}  // namespace

std::span<const RowCopyBackend> row_copy_backends() {
  static const std::array<RowCopyBackend, 4> all{avx512_row_copy(), avx2_row_copy(), neon_row_copy(),
                                                 portable_row_copy()};
  return all;
}

const RowCopyBackend& row_copy_backend() {
  static const RowCopyBackend& backend = choose();
  return backend;
}

}  // namespace memsys
