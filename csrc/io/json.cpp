// See json.h.
#include "io/json.h"

namespace memsys {
namespace {

void append_utf8(std::string& target, uint32_t point) {
  const auto continuation = [&](unsigned shift) { target += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
  if (point < 0x80) {
    target += static_cast<char>(point);
  } else if (point < 0x800) {
    target += static_cast<char>(0xC0 | (point >> 6));
    continuation(0);
  } else if (point < 0x10000) {
    target += static_cast<char>(0xE0 | (point >> 12));
    continuation(6);
    continuation(0);
  } else {
    target += static_cast<char>(0xF0 | (point >> 18));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

bool is_high_surrogate(uint32_t unit) { return unit >= 0xD800 && unit < 0xDC00; }
bool is_low_surrogate(uint32_t unit) { return unit >= 0xDC00 && unit < 0xE000; }

}  // namespace

std::string JsonCursor::read_string() {
  expect('"');
  std::string result;
  while (true) {
    if (at_end()) fail("the end of a string");
    const auto byte = static_cast<unsigned char>(text_[at_]);
    if (byte == '"') {
      ++at_;
      return result;
    }
    if (byte < 0x20) fail("a string without raw control characters");
    if (byte == '\\') {
      ++at_;
      read_escape(result);
    } else {
      read_utf8(result);
    }
  }
}

void JsonCursor::read_escape(std::string& target) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
  if (at_end()) fail("an escape");
  const char name = text_[at_];
  if (const size_t index = kNames.find(name); index != std::string_view::npos) {
    ++at_;
    target += kMeanings[index];
    return;
  }
  if (name != 'u') fail("an escape of JSON");
  ++at_;
  const int64_t start = offset();
  uint32_t point = read_four_hex();
  if (is_low_surrogate(point)) fail_at(start, "a high surrogate first", "a low one");
  if (is_high_surrogate(point)) {
    if (text_.substr(at_, 2) != "\\u") fail("the low surrogate of a pair");
    at_ += 2;
    const int64_t second = offset();
    const uint32_t low = read_four_hex();
    if (!is_low_surrogate(low)) fail_at(second, "the low surrogate of a pair", "another character");
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(target, point);
}

uint32_t JsonCursor::read_four_hex() {
  uint32_t value = 0;
  for (int digit = 0; digit < 4; ++digit, ++at_) {
    const char c = at_end() ? '\0' : text_[at_];
    uint32_t part = 16;
    if (c >= '0' && c <= '9') part = static_cast<uint32_t>(c - '0');
    if (c >= 'a' && c <= 'f') part = static_cast<uint32_t>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') part = static_cast<uint32_t>(c - 'A' + 10);
    if (part == 16) fail("four hexadecimal digits");
    value = value << 4 | part;
  }
  return value;
}

// One character as it stands. Overlong forms, surrogates and points above U+10FFFF are refused (RFC 3629).
void JsonCursor::read_utf8(std::string& target) {
  const auto lead = static_cast<unsigned char>(text_[at_]);
  size_t count = 1;
  uint32_t point = lead, least = 0;
  if (lead >= 0x80) {
    if (lead < 0xC2 || lead > 0xF4) fail("UTF-8");
    count = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    least = count == 2 ? 0x80 : count == 3 ? 0x800 : 0x10000;
    point = lead & (0x7Fu >> count);
  }
  for (size_t index = 1; index < count; ++index) {
    const auto byte = at_ + index < text_.size() ? static_cast<unsigned char>(text_[at_ + index]) : 0u;
    if ((byte & 0xC0) != 0x80) fail("UTF-8");
    point = point << 6 | (byte & 0x3F);
  }
  if (point < least || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) fail("UTF-8");
  target += text_.substr(at_, count);
  at_ += count;
}

}  // namespace memsys
