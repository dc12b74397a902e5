// The launchers: one namespace a side, the same calls in both. They return at once on zero elements, allocate nothing,
// and check nothing but the launch (DeviceError): pointers and counts are the caller's to check.
// `stream` is a StreamView's value. The host's calls ignore it: they are done when they return.
#pragma once

#include <cstdint>

#include "kernels/pattern_body.h"

namespace memsys::host_kernels {

void fill_pattern(const PatternSpan& span, uintptr_t stream);
// Adds the number of words that differ from the pattern to *mismatch_count.
void count_mismatches(const PatternSpan& span, uint64_t* mismatch_count, uintptr_t stream);

}  // namespace memsys::host_kernels

// Without CUDA in the build each of these throws DeviceError that says so.
namespace memsys::cuda_kernels {

void fill_pattern(const PatternSpan& span, uintptr_t stream);
void count_mismatches(const PatternSpan& span, uint64_t* mismatch_count, uintptr_t stream);
// Keeps the stream busy for `duration_us`, at most kMaxDelayUs, so that tests can make a copy late on purpose.
void delay(int64_t duration_us, uintptr_t stream);

inline constexpr int64_t kMaxDelayUs = 1'000'000;

}  // namespace memsys::cuda_kernels
