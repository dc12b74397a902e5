// A plain prefetch loop, compiled for the one row width at hand: what a careful user would write, and what the gather
// that takes any width is held against. bench_gather.py compiles it with -DROW_BYTES=...
#include <cstdint>
#include <cstring>

extern "C" void plain_gather(const char* table, const int64_t* index, int64_t count, char* out) {
  constexpr int64_t kAheadRows = 8, kLineBytes = 64;
#pragma omp parallel for schedule(static)
  for (int64_t at = 0; at < count; ++at) {
    if (at + kAheadRows < count) {
      const char* next = table + index[at + kAheadRows] * ROW_BYTES;
      for (int64_t offset = 0; offset < ROW_BYTES; offset += kLineBytes) __builtin_prefetch(next + offset);
    }
    std::memcpy(out + at * ROW_BYTES, table + index[at] * ROW_BYTES, ROW_BYTES);
  }
}
