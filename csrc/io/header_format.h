// What the parsers of the single formats share: where a header lies, and how it is refused.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "io/tensor_header.h"

namespace memsys {

// The header's text is the range [text_offset, end_offset) of the file.
struct HeaderSpan {
  int64_t text_offset = 0;
  int64_t end_offset = 0;
};

// Where in the file something is wrong; tensor may be empty.
struct HeaderPlace {
  const std::string& path;
  std::string tensor;
  int64_t offset = 0;
};

[[noreturn]] void refuse_header(const HeaderPlace& place, const std::string& wanted, const std::string& found);

uint64_t read_little_endian(std::span<const uint8_t> bytes);  // at most 8
std::string_view header_text(std::span<const uint8_t> start, const HeaderSpan& span);

HeaderSpan find_safetensors_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes);
void parse_safetensors_header(const HeaderSpan& span, std::span<const uint8_t> start, TensorFile& target);

bool is_npy(std::span<const uint8_t> start);
HeaderSpan find_npy_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes);
void parse_npy_header(const HeaderSpan& span, std::span<const uint8_t> start, TensorFile& target);

}  // namespace memsys
