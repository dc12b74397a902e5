// See bytes.h.
#include "base/bytes.h"

#include <cstdio>

namespace memsys {

std::string format_bytes(int64_t bytes) {
  const char* unit = "KiB";
  double value = static_cast<double>(bytes) / static_cast<double>(kKiB);
  if (bytes < kKiB) return std::to_string(bytes) + " bytes";
  if (bytes >= kGiB) {
    unit = "GiB";
    value = static_cast<double>(bytes) / static_cast<double>(kGiB);
  } else if (bytes >= kMiB) {
    unit = "MiB";
    value = static_cast<double>(bytes) / static_cast<double>(kMiB);
  }
  char text[32];
  std::snprintf(text, sizeof text, value < 10 ? "%.2f %s" : "%.1f %s", value, unit);
  return text;
}

}  // namespace memsys
