// Writes a parsed header back, so that reading it again must give the same: JSON in two spellings of its strings, and
// the dictionary of an .npy file.
#pragma once

#include <string>

#include "csrc/io/tensor_bytes.h"

namespace fuzz {

enum class Spelling { plain, escaped };

inline void append_unit(std::string& text, uint32_t unit) {
  constexpr char kHex[] = "0123456789abcdefABCDEF";
  text += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) text += kHex[unit >> shift & 15];
}

// Valid UTF-8, as the parser hands it out, in quotes.
inline std::string json_string(const std::string& value, Spelling spelling) {
  std::string text = "\"";
  for (size_t at = 0; at < value.size();) {
    const auto lead = static_cast<unsigned char>(value[at]);
    const size_t count = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t point = count == 1 ? lead : lead & (0x7Fu >> count);
    for (size_t index = 1; index < count; ++index)
      point = point << 6 | (static_cast<unsigned char>(value.at(at + index)) & 0x3F);
    const bool must = point < 0x20 || point == '"' || point == '\\';
    if (spelling == Spelling::plain && !must) {
      text += value.substr(at, count);
    } else if (point < 0x10000) {
      append_unit(text, point);
    } else {
      append_unit(text, 0xD800 + ((point - 0x10000) >> 10));
      append_unit(text, 0xDC00 + ((point - 0x10000) & 0x3FF));
    }
    at += count;
  }
  return text + "\"";
}

inline std::string written_safetensors(const memsys::TensorFile& file, int64_t data_offset, Spelling spelling) {
  std::string json = "{", separator;
  if (!file.metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : file.metadata) {
      json += separator + json_string(key, spelling) + ":" + json_string(value, spelling);
      separator = ",";
    }
    json += "}";
  }
  for (const memsys::TensorEntry& entry : file.tensors) {
    const int64_t begin = entry.offset_bytes - data_offset;
    json += separator + json_string(entry.name, spelling) + ":{\"dtype\":\"" + memsys::tensor_type_name(entry.dtype) +
            "\",\"shape\":" + memsys::shape_text(entry.shape) + ",\"data_offsets\":[" + std::to_string(begin) + "," +
            std::to_string(begin + entry.size_bytes) + "]}";
    separator = ",";
  }
  return fixture::safetensors(json + "}", 0);
}

inline std::string written_npy(const memsys::TensorEntry& entry) {
  std::string descr;
  for (const char* kind : {"|b", "|u", "|i", "<u", "<i", "<f", "<c"})
    for (const char* bytes : {"1", "2", "4", "8", "16"})
      if (memsys::type_of_npy(std::string(kind) + bytes) == entry.dtype) descr = std::string(kind) + bytes;
  std::string shape;
  for (const int64_t size : entry.shape) shape += std::to_string(size) + ",";
  const std::string order = entry.order == memsys::TensorOrder::column_major ? "True" : "False";
  return fixture::npy("{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': (" + shape + "), }", 0, 2);
}

}  // namespace fuzz
