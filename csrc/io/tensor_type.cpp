// See tensor_type.h.
#include "io/tensor_type.h"

#include <algorithm>
#include <array>

namespace memsys {
namespace {

struct TypeFacts {
  TensorType type;
  int64_t bytes;
  std::string_view safetensors;  // empty: that format has no such type
  std::string_view npy;
};

constexpr std::array<TypeFacts, 20> kTypes{{
    {TensorType::boolean, 1, "BOOL", "|b1"},
    {TensorType::uint8, 1, "U8", "|u1"},
    {TensorType::int8, 1, "I8", "|i1"},
    {TensorType::uint16, 2, "U16", "<u2"},
    {TensorType::int16, 2, "I16", "<i2"},
    {TensorType::uint32, 4, "U32", "<u4"},
    {TensorType::int32, 4, "I32", "<i4"},
    {TensorType::uint64, 8, "U64", "<u8"},
    {TensorType::int64, 8, "I64", "<i8"},
    {TensorType::float8_e4m3, 1, "F8_E4M3", ""},
    {TensorType::float8_e5m2, 1, "F8_E5M2", ""},
    {TensorType::float8_e4m3fnuz, 1, "F8_E4M3FNUZ", ""},
    {TensorType::float8_e5m2fnuz, 1, "F8_E5M2FNUZ", ""},
    {TensorType::float8_e8m0, 1, "F8_E8M0", ""},
    {TensorType::bfloat16, 2, "BF16", ""},
    {TensorType::float16, 2, "F16", "<f2"},
    {TensorType::float32, 4, "F32", "<f4"},
    {TensorType::float64, 8, "F64", "<f8"},
    {TensorType::complex64, 8, "C64", "<c8"},
    {TensorType::complex128, 16, "", "<c16"},
}};

const TypeFacts& facts(TensorType type) { return kTypes[static_cast<size_t>(type)]; }

constexpr bool is_in_order() {
  for (size_t index = 0; index < kTypes.size(); ++index)
    if (kTypes[index].type != static_cast<TensorType>(index)) return false;
  return true;
}
static_assert(is_in_order(), "facts() indexes by the enum");

std::optional<TensorType> find(std::string_view name, std::string_view TypeFacts::*field) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(),
                                   [&](const TypeFacts& one) { return !name.empty() && one.*field == name; });
  return found == kTypes.end() ? std::nullopt : std::optional(found->type);
}

}  // namespace

int64_t element_bytes(TensorType type) { return facts(type).bytes; }

std::string tensor_type_name(TensorType type) {
  return std::string(type == TensorType::complex128 ? "C128" : facts(type).safetensors);
}

std::optional<TensorType> type_of_safetensors(std::string_view name) { return find(name, &TypeFacts::safetensors); }
std::optional<TensorType> type_of_npy(std::string_view descr) { return find(descr, &TypeFacts::npy); }

std::optional<int64_t> tensor_bytes(TensorType type, const std::vector<int64_t>& shape) {
  int64_t bytes = element_bytes(type);
  bool is_empty = false;
  for (const int64_t dimension : shape) {
    if (dimension == 0) is_empty = true;
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(dimension, 1), &bytes)) return std::nullopt;
  }
  return is_empty ? 0 : bytes;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t index = 0; index < shape.size(); ++index) text += (index == 0 ? "" : ", ") + std::to_string(shape[index]);
  return text + "]";
}

}  // namespace memsys
