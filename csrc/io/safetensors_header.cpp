// The header of a .safetensors file: 8 bytes of length, then flat JSON. Stricter than the format's own library:
// duplicate keys and unknown fields are refused, because each has two readings and only one can be meant.
#include <algorithm>
#include <unordered_set>

#include "io/header_format.h"
#include "io/json.h"

namespace memsys {
namespace {

constexpr int64_t kLengthBytes = 8;

class Parser {
 public:
  Parser(const HeaderSpan& span, std::string_view text, TensorFile& file) : span_(span), json_(text), file_(file) {}

  void run() {
    try {
      json_.read_object([&](const std::string& key, int64_t key_offset) { read_member(key, key_offset); });
      tensor_.clear();
      json_.expect_end();
    } catch (const SyntaxError& error) {
      refuse(error.offset(), error.wanted(), error.found());
    }
    check_cover();
  }

 private:
  [[noreturn]] void refuse(int64_t text_offset, const std::string& wanted, const std::string& found) const {
    refuse_header({file_.path, tensor_, span_.text_offset + text_offset}, wanted, found);
  }

  void read_member(const std::string& key, int64_t key_offset) {
    tensor_.clear();
    if (!keys_.insert(key).second) refuse(key_offset, "every key once", "a second " + quoted(key));
    if (key == "__metadata__") return read_metadata();
    if (std::any_of(key.begin(), key.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }))
      refuse(key_offset, "a name without control characters", quoted(key));
    if (static_cast<int64_t>(file_.tensors.size()) == kMaxTensorCount)
      refuse(key_offset, "at most " + std::to_string(kMaxTensorCount) + " tensors", "one more");
    tensor_ = key;
    read_tensor(key_offset);
  }

  void read_metadata() {
    json_.read_object([&](const std::string& key, int64_t key_offset) {
      if (!file_.metadata.emplace(key, json_.read_string()).second)
        refuse(key_offset, "every key of the metadata once", "a second " + quoted(key));
    });
  }

  void read_tensor(int64_t key_offset) {
    TensorEntry entry;
    entry.name = tensor_;
    int64_t begin = 0, end = 0;
    enum Field : unsigned { kType = 1, kShape = 2, kOffsets = 4, kAll = 7 };
    unsigned seen = 0;
    const auto once = [&](Field field, const std::string& name, int64_t offset) {
      if ((seen & field) != 0) refuse(offset, "every field once", "a second " + quoted(name));
      seen |= field;
    };
    json_.read_object([&](const std::string& field, int64_t offset) {
      if (field == "dtype") {
        once(kType, field, offset);
        entry.dtype = read_type();
      } else if (field == "shape") {
        once(kShape, field, offset);
        entry.shape = read_shape();
      } else if (field == "data_offsets") {
        once(kOffsets, field, offset);
        read_offsets(begin, end);
      } else {
        refuse(offset, "\"dtype\", \"shape\" or \"data_offsets\"", quoted(field));
      }
    });
    if (seen != kAll) refuse(key_offset, "\"dtype\", \"shape\" and \"data_offsets\"", "an object without all three");
    place(entry, begin, end, key_offset);
    file_.tensors.push_back(std::move(entry));
  }

  TensorType read_type() {
    json_.skip_space();
    const int64_t offset = json_.offset();
    const std::string name = json_.read_string();
    const auto type = type_of_safetensors(name);
    if (!type) refuse(offset, "a dtype of whole bytes that is known here, such as \"F32\"", quoted(name));
    return *type;
  }

  std::vector<int64_t> read_shape() {
    std::vector<int64_t> shape;
    json_.expect('[');
    if (json_.take(']')) return shape;
    do {
      if (shape.size() == kMaxRank) json_.fail("at most " + std::to_string(kMaxRank) + " dimensions");
      shape.push_back(json_.read_count());
    } while (json_.take(','));
    json_.expect(']');
    return shape;
  }

  void read_offsets(int64_t& begin, int64_t& end) {
    json_.expect('[');
    begin = json_.read_count();
    json_.expect(',');
    end = json_.read_count();
    json_.expect(']');
  }

  void place(TensorEntry& entry, int64_t begin, int64_t end, int64_t key_offset) const {
    const std::string range = "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
    const int64_t data_bytes = file_.file_bytes - span_.end_offset;
    if (begin > end || end > data_bytes)
      refuse(key_offset, "data_offsets inside the file's " + std::to_string(data_bytes) + " data bytes", range);
    const auto bytes = tensor_bytes(entry.dtype, entry.shape);
    const std::string what = tensor_type_name(entry.dtype) + " of shape " + shape_text(entry.shape);
    if (!bytes) refuse(key_offset, "a size that fits 64 bits", what);
    if (*bytes != end - begin)
      refuse(key_offset, std::to_string(*bytes) + " bytes for " + what,
             std::to_string(end - begin) + " bytes in data_offsets " + range);
    entry.offset_bytes = span_.end_offset + begin;
    entry.size_bytes = *bytes;
  }

  // Every data byte belongs to exactly one tensor.
  void check_cover() {
    auto& tensors = file_.tensors;
    std::stable_sort(tensors.begin(), tensors.end(), [](const TensorEntry& left, const TensorEntry& right) {
      return std::pair(left.offset_bytes, left.size_bytes) < std::pair(right.offset_bytes, right.size_bytes);
    });
    int64_t covered = span_.end_offset;
    for (const TensorEntry& entry : tensors) {
      if (entry.offset_bytes != covered)
        refuse_header({file_.path, entry.name, entry.offset_bytes},
                      "data from byte " + std::to_string(covered) + ", where the tensor before it ends",
                      entry.offset_bytes < covered ? "an overlap" : "a hole");
      covered += entry.size_bytes;
    }
    if (covered != file_.file_bytes)
      refuse_header({file_.path, "", covered}, "the end of the file, for no tensor holds more",
                    std::to_string(file_.file_bytes - covered) + " more bytes");
  }

  const HeaderSpan& span_;
  JsonCursor json_;
  TensorFile& file_;
  std::string tensor_;  // being read, for messages
  std::unordered_set<std::string> keys_;
};

}  // namespace

HeaderSpan find_safetensors_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes) {
  if (file_bytes < kLengthBytes || start.size() < kLengthBytes)
    refuse_header({path, "", 0}, "a .safetensors or .npy file with a header length of 8 bytes",
                  std::to_string(std::min<uint64_t>(start.size(), static_cast<uint64_t>(file_bytes))) + " bytes");
  const uint64_t length = read_little_endian(start.first(kLengthBytes));
  const auto available = static_cast<uint64_t>(std::min(file_bytes - kLengthBytes, kMaxSafetensorsHeaderBytes));
  if (length > available)
    refuse_header({path, "", 0}, "a header length of at most " + std::to_string(available) + " bytes",
                  std::to_string(length));
  return {kLengthBytes, kLengthBytes + static_cast<int64_t>(length)};
}

void parse_safetensors_header(const HeaderSpan& span, std::span<const uint8_t> start, TensorFile& target) {
  Parser(span, header_text(start, span), target).run();
}

}  // namespace memsys
