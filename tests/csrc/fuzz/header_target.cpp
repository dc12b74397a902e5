// Fuzz target: the bytes are the start of a .safetensors or .npy file. Whatever they are, they are refused by a
// CorruptionError that helps, or what they describe lies in the file, apart from one another, and survives being
// written and read again.
#include <algorithm>
#include <limits>
#include <set>

#include "csrc/fuzz/header_writer.h"
#include "csrc/fuzz/target.h"
#include "io/header_format.h"

using namespace memsys;
using fuzz::expect;

namespace {

constexpr int64_t kLargestFile = std::numeric_limits<int64_t>::max();

bool is_same(const TensorEntry& left, const TensorEntry& right, int64_t shift) {
  return left.name == right.name && left.dtype == right.dtype && left.order == right.order &&
         left.shape == right.shape && left.offset_bytes + shift == right.offset_bytes &&
         left.size_bytes == right.size_bytes;
}

// The header is parsed from exactly its bytes on the heap, so that the sanitizer sees one read too many.
std::optional<TensorFile> parse(std::span<const uint8_t> start, int64_t file_bytes) {
  try {
    const auto header_bytes = static_cast<size_t>(tensor_header_bytes("f", start, file_bytes));
    const std::vector<uint8_t> prefix(
        start.begin(), start.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(start.size(), kHeaderPrefixBytes)));
    expect(tensor_header_bytes("f", prefix, file_bytes) == static_cast<int64_t>(header_bytes),
           "the prefix alone gives the header's length");
    const std::vector<uint8_t> header(
        start.begin(), start.begin() + static_cast<std::ptrdiff_t>(std::min(start.size(), header_bytes)));
    return parse_tensor_header("f", header, file_bytes);
  } catch (const CorruptionError& error) {
    const std::string message = error.what();
    for (const char* part : {"f: ", "wanted ", ", found ", "; write or download the file again"})
      expect(message.find(part) != std::string::npos, "a refusal says what was wanted and found, and a remedy");
    expect(std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c < 0x7F; }),
           "a refusal is printable");
    return std::nullopt;
  }  // anything else is thrown on, and ends the process
}

void check_places(const TensorFile& file, int64_t header_bytes, bool is_npy_file) {
  int64_t at = header_bytes;
  std::set<std::string> names;
  for (const TensorEntry& entry : file.tensors) {
    expect(entry.offset_bytes == at, "tensors follow one another");
    expect(entry.size_bytes >= 0 && entry.size_bytes <= file.file_bytes - at, "a tensor lies in the file");
    expect(tensor_bytes(entry.dtype, entry.shape) == entry.size_bytes, "a tensor has the bytes of its shape");
    expect(entry.shape.size() <= kMaxRank, "a tensor has a rank that torch takes");
    expect(names.insert(entry.name).second, "a name is there once");
    at += entry.size_bytes;
  }
  expect(is_npy_file ? file.tensors.size() == 1 : at == file.file_bytes, "the whole file belongs to its tensors");
}

void check_round_trip(const TensorFile& file, int64_t header_bytes, const std::string& written) {
  const std::span bytes(reinterpret_cast<const uint8_t*>(written.data()), written.size());
  const int64_t shift = static_cast<int64_t>(written.size()) - header_bytes;
  if (shift > kLargestFile - file.file_bytes) return;  // it would be too long a file
  const auto again = parse(bytes, file.file_bytes + shift);
  expect(again.has_value(), "what was parsed can be written and read again");
  expect(again->metadata == file.metadata && again->tensors.size() == file.tensors.size(), "nothing is lost");
  for (size_t index = 0; index < file.tensors.size(); ++index)
    expect(is_same(file.tensors[index], again->tensors[index], shift), "a tensor comes back as it was");
}

// Whether a file of this size that begins so is accepted.
bool check_file(std::span<const uint8_t> start, int64_t file_bytes) {
  const auto file = parse(start, file_bytes);
  if (!file) return false;
  const int64_t header_bytes = tensor_header_bytes("f", start, file_bytes);
  expect(header_bytes <= file_bytes, "a header lies in the file");
  check_places(*file, header_bytes, is_npy(start));
  if (is_npy(start)) {
    check_round_trip(*file, header_bytes, fuzz::written_npy(file->tensors[0]));
    return true;
  }
  expect(!parse(start, file_bytes - 1), "a file that lost a byte is refused");
  for (const auto spelling : {fuzz::Spelling::plain, fuzz::Spelling::escaped})
    check_round_trip(*file, header_bytes, fuzz::written_safetensors(*file, header_bytes, spelling));
  return true;
}

// The bytes of data that the header may want: its largest number.
int64_t largest_number(std::string_view text) {
  int64_t largest = 0, value = 0;
  for (const char c : text) {
    const bool fits = c >= '0' && c <= '9' && !__builtin_mul_overflow(value, int64_t{10}, &value) &&
                      !__builtin_add_overflow(value, int64_t{c - '0'}, &value);
    if (!fits) value = 0;
    largest = std::max(largest, value);
  }
  return largest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span start(data, size);
  if (check_file(start, static_cast<int64_t>(size))) return 0;
  try {
    const int64_t header_bytes = tensor_header_bytes("f", start, kLargestFile);
    const auto text_bytes = static_cast<size_t>(std::min<int64_t>(header_bytes, static_cast<int64_t>(size)));
    const int64_t data_bytes = largest_number({reinterpret_cast<const char*>(data), text_bytes});
    check_file(start, data_bytes > kLargestFile - header_bytes ? kLargestFile : header_bytes + data_bytes);
  } catch (const CorruptionError&) {  // no file of any size begins like this
  }
  return 0;
}
