// The element types that tensor files hold, by their safetensors names, and the checked size of a shape of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace memsys {

enum class TensorType {
  boolean,
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  uint64,
  int64,
  float8_e4m3,
  float8_e5m2,
  float8_e4m3fnuz,
  float8_e5m2fnuz,
  float8_e8m0,
  bfloat16,
  float16,
  float32,
  float64,
  complex64,
  complex128,  // .npy only
};

inline constexpr size_t kMaxRank = 64;  // of torch and of NumPy

int64_t element_bytes(TensorType type);
std::string tensor_type_name(TensorType type);  // "BF16"
std::optional<TensorType> type_of_safetensors(std::string_view name);
// Of a NumPy descr such as "<f4": little-endian or single-byte numbers only.
std::optional<TensorType> type_of_npy(std::string_view descr);
// Nothing when it overflows, even behind a dimension of 0: strides would.
std::optional<int64_t> tensor_bytes(TensorType type, const std::vector<int64_t>& shape);
std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

}  // namespace memsys
