// The bodies as plain loops: the host's own launchers, and what the CUDA ones are checked against.
#include "kernels/launch.h"

namespace memsys::host_kernels {

void fill_pattern(const PatternSpan& span, uintptr_t /*stream*/) {
  const FillPattern body{span};
  for (int64_t index = 0; index < span.word_count; ++index) body(index);
}

void count_mismatches(const PatternSpan& span, uint64_t* mismatch_count, uintptr_t /*stream*/) {
  if (span.word_count <= 0) return;
  const IsMismatch body{span};
  uint64_t count = 0;
  for (int64_t index = 0; index < span.word_count; ++index) count += body(index) ? 1 : 0;
  *mismatch_count += count;
}

}  // namespace memsys::host_kernels
