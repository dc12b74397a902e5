// Builds small .safetensors and .npy files in memory, good and bad, for the tests of their parsers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "csrc/check.h"
#include "io/tensor_header.h"

namespace fixture {

inline std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int index = 0; index < bytes; ++index) text += static_cast<char>(value >> (8 * index));
  return text;
}

inline std::string safetensors(const std::string& json, int64_t data_bytes) {
  return little_endian(json.size(), 8) + json + std::string(static_cast<size_t>(data_bytes), 'x');
}

inline std::string npy(const std::string& dictionary, int64_t data_bytes, int major = 1) {
  return std::string("\x93NUMPY") + static_cast<char>(major) + '\0' +
         little_endian(dictionary.size(), major == 1 ? 2 : 4) + dictionary +
         std::string(static_cast<size_t>(data_bytes), 'x');
}

// A copy of exactly these bytes on the heap, so that a sanitizer sees one read too many.
inline memsys::TensorFile parse(const std::string& file) {
  const std::vector<uint8_t> bytes(file.begin(), file.end());
  return memsys::parse_tensor_header("f", bytes, static_cast<int64_t>(bytes.size()));
}

// The message with which the file is refused, without its common ending.
inline std::string refusal(const std::string& file) {
  const std::string ending = "; write or download the file again";
  try {
    parse(file);
  } catch (const memsys::CorruptionError& error) {
    const std::string message = error.what();
    if (!message.ends_with(ending)) check::fail(__FILE__, __LINE__, "no remedy: " + message);
    return message.substr(0, message.size() - ending.size());
  }
  return "accepted";
}

}  // namespace fixture
