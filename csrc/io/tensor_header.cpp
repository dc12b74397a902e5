// Tells the formats apart by their first bytes and hands over to the one that knows.
#include "io/tensor_header.h"

#include <algorithm>

#include "base/error.h"
#include "io/header_format.h"
#include "io/text_cursor.h"

namespace memsys {
namespace {

// The magic of .npy read as a safetensors length lies far above its cap, so no file can be both.
HeaderSpan find_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes) {
  MEMSYS_EXPECT(file_bytes >= 0, InputError, "a file size of " + std::to_string(file_bytes) + " makes no sense");
  const auto usable = std::min<uint64_t>(start.size(), static_cast<uint64_t>(file_bytes));
  const auto inside = start.first(static_cast<size_t>(usable));
  return is_npy(inside) ? find_npy_header(path, inside, file_bytes) : find_safetensors_header(path, inside, file_bytes);
}

}  // namespace

void refuse_header(const HeaderPlace& place, const std::string& wanted, const std::string& found) {
  throw CorruptionError(place.path + (place.tensor.empty() ? "" : ": tensor " + quoted(place.tensor)) + ": byte " +
                        std::to_string(place.offset) + ": wanted " + wanted + ", found " + found +
                        "; write or download the file again");
}

uint64_t read_little_endian(std::span<const uint8_t> bytes) {
  uint64_t value = 0;
  for (size_t index = bytes.size(); index > 0; --index) value = value << 8 | bytes[index - 1];
  return value;
}

std::string_view header_text(std::span<const uint8_t> start, const HeaderSpan& span) {
  return {reinterpret_cast<const char*>(start.data()) + span.text_offset,
          static_cast<size_t>(span.end_offset - span.text_offset)};
}

int64_t tensor_header_bytes(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes) {
  return find_header(path, start, file_bytes).end_offset;
}

TensorFile parse_tensor_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes) {
  const HeaderSpan span = find_header(path, start, file_bytes);
  const auto given_bytes = static_cast<int64_t>(start.size());
  if (given_bytes < span.end_offset)
    refuse_header({path, "", given_bytes}, "a header of " + std::to_string(span.end_offset) + " bytes",
                  std::to_string(given_bytes));
  TensorFile file{path, file_bytes, {}, {}};
  if (is_npy(start))
    parse_npy_header(span, start, file);
  else
    parse_safetensors_header(span, start, file);
  return file;
}

}  // namespace memsys
