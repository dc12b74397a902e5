// What a .safetensors or .npy file says it holds, believed only after every number was checked against the file's
// size. Pure functions of untrusted bytes: a header that is not exactly right is a CorruptionError that names file,
// tensor, offset, what was wanted and what was found.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/tensor_type.h"

namespace memsys {

enum class TensorOrder { row_major, column_major };

struct TensorEntry {
  std::string name;  // empty in an .npy file
  TensorType dtype = TensorType::uint8;
  TensorOrder order = TensorOrder::row_major;
  std::vector<int64_t> shape;
  int64_t offset_bytes = 0;  // from the start of the file; aligned only by luck
  int64_t size_bytes = 0;
};

struct TensorFile {
  std::string path;
  int64_t file_bytes = 0;
  std::vector<TensorEntry> tensors;  // by offset
  std::map<std::string, std::string> metadata;
};

inline constexpr int64_t kHeaderPrefixBytes = 12;  // enough for tensor_header_bytes()
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int64_t kMaxNpyHeaderBytes = 1 << 20;
inline constexpr int64_t kMaxTensorCount = 1 << 20;

// How many bytes from the start of the file its header takes. `start` holds the file's first kHeaderPrefixBytes
// bytes or more, or the whole of a shorter file.
int64_t tensor_header_bytes(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes);
// `start` holds at least those bytes.
TensorFile parse_tensor_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes);

}  // namespace memsys
