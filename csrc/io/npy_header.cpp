// The header of an .npy file (NumPy's format 1.0, 2.0 and 3.0): magic, version, length, then a Python dictionary
// of exactly descr, fortran_order and shape. Object arrays are refused: their data is a pickle, which is a program.
#include <algorithm>
#include <array>

#include "io/header_format.h"
#include "io/text_cursor.h"

namespace memsys {
namespace {

constexpr std::array<uint8_t, 6> kMagic{0x93, 'N', 'U', 'M', 'P', 'Y'};

class Parser {
 public:
  Parser(const HeaderSpan& span, std::string_view text, TensorFile& file) : span_(span), text_(text), file_(file) {}

  void run() {
    TensorEntry entry;
    try {
      read_dictionary(entry);
      text_.expect_end();
    } catch (const SyntaxError& error) {
      refuse(error.offset(), error.wanted(), error.found());
    }
    place(entry);
    file_.tensors.push_back(std::move(entry));
  }

 private:
  [[noreturn]] void refuse(int64_t text_offset, const std::string& wanted, const std::string& found) const {
    refuse_header({file_.path, "", span_.text_offset + text_offset}, wanted, found);
  }

  void read_dictionary(TensorEntry& entry) {
    bool has_descr = false, has_order = false, has_shape = false;
    const auto once = [&](bool& seen, const std::string& key) {
      if (seen) refuse(text_.offset(), "every key once", "a second " + quoted(key));
      seen = true;
    };
    text_.expect('{');
    while (!text_.take('}')) {
      const std::string key = read_string();
      text_.expect(':');
      if (key == "descr") {
        once(has_descr, key);
        entry.dtype = read_type();
      } else if (key == "fortran_order") {
        once(has_order, key);
        entry.order = read_order();
      } else if (key == "shape") {
        once(has_shape, key);
        entry.shape = read_shape();
      } else {
        refuse(text_.offset(), "'descr', 'fortran_order' or 'shape'", quoted(key));
      }
      if (!text_.take(',') && text_.peek() != '}') text_.fail("',' or '}'");
    }
    if (!has_descr || !has_order || !has_shape)
      refuse(text_.offset(), "'descr', 'fortran_order' and 'shape'", "a dictionary without all three");
  }

  // No key or type that is accepted needs an escape, so none is read.
  std::string read_string() {
    const char quote = text_.peek();
    if (quote != '\'' && quote != '"') text_.fail("a string");
    text_.expect(quote);
    return text_.read_until(quote);
  }

  TensorType read_type() {
    if (text_.peek() == '[') text_.fail("one plain type (save the fields of a structured array one by one)");
    const int64_t offset = text_.offset();
    const std::string descr = read_string();
    if (descr.find('O') != std::string::npos)
      refuse(offset, "numbers", "Python objects (" + quoted(descr) + "), which are never unpickled");
    if (descr.starts_with('>')) refuse(offset, "little-endian numbers", "big-endian ones (" + quoted(descr) + ")");
    const auto type = type_of_npy(descr);
    if (!type) refuse(offset, "a numeric descr such as '<f4'", quoted(descr));
    return *type;
  }

  TensorOrder read_order() {
    if (text_.take("True")) return TensorOrder::column_major;
    if (text_.take("False")) return TensorOrder::row_major;
    text_.fail("True or False");
  }

  // (), (3,), (3, 4) or (3, 4,); a bracketed single number would be an integer, not a tuple.
  std::vector<int64_t> read_shape() {
    std::vector<int64_t> shape;
    text_.expect('(');
    if (text_.take(')')) return shape;
    while (true) {
      if (shape.size() == kMaxRank) text_.fail("at most " + std::to_string(kMaxRank) + " dimensions");
      shape.push_back(text_.read_count());
      const bool has_comma = text_.take(',');
      if (!has_comma && shape.size() == 1) text_.fail("','");
      if (text_.take(')')) return shape;
      if (!has_comma) text_.fail("',' or ')'");
    }
  }

  // More bytes than the array's may follow: np.save appends when told to.
  void place(TensorEntry& entry) const {
    const auto bytes = tensor_bytes(entry.dtype, entry.shape);
    const std::string what = tensor_type_name(entry.dtype) + " of shape " + shape_text(entry.shape);
    if (!bytes) refuse(0, "a size that fits 64 bits", what);
    const int64_t available = file_.file_bytes - span_.end_offset;
    if (*bytes > available)
      refuse_header({file_.path, "", span_.end_offset}, std::to_string(*bytes) + " data bytes for " + what,
                    std::to_string(available));
    entry.offset_bytes = span_.end_offset;
    entry.size_bytes = *bytes;
  }

  const HeaderSpan& span_;
  TextCursor text_;
  TensorFile& file_;
};

}  // namespace

bool is_npy(std::span<const uint8_t> start) {
  return start.size() >= kMagic.size() && std::equal(kMagic.begin(), kMagic.end(), start.begin());
}

HeaderSpan find_npy_header(const std::string& path, std::span<const uint8_t> start, int64_t file_bytes) {
  const size_t version_end = kMagic.size() + 2;
  const auto too_short = [&](size_t wanted) {
    if (start.size() < wanted)
      refuse_header({path, "", static_cast<int64_t>(start.size())},
                    "the first " + std::to_string(wanted) + " bytes of an .npy file", std::to_string(start.size()));
  };
  too_short(version_end);
  const unsigned major = start[kMagic.size()], minor = start[kMagic.size() + 1];
  if (major < 1 || major > 3 || minor != 0)
    refuse_header({path, "", static_cast<int64_t>(kMagic.size())}, ".npy version 1.0, 2.0 or 3.0",
                  std::to_string(major) + "." + std::to_string(minor));
  const size_t text_start = version_end + (major == 1 ? 2 : 4);
  too_short(text_start);
  const auto length = static_cast<int64_t>(read_little_endian(start.subspan(version_end, text_start - version_end)));
  const int64_t available = std::min(file_bytes - static_cast<int64_t>(text_start), kMaxNpyHeaderBytes);
  if (length > available)
    refuse_header({path, "", static_cast<int64_t>(version_end)},
                  "a header length of at most " + std::to_string(available) + " bytes", std::to_string(length));
  return {static_cast<int64_t>(text_start), static_cast<int64_t>(text_start) + length};
}

void parse_npy_header(const HeaderSpan& span, std::span<const uint8_t> start, TensorFile& target) {
  Parser(span, header_text(start, span), target).run();
}

}  // namespace memsys
