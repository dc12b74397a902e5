// See text_cursor.h.
#include "io/text_cursor.h"

#include <limits>

namespace memsys {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

SyntaxError::SyntaxError(int64_t offset, const std::string& wanted, const std::string& found)
    : Error("at " + std::to_string(offset) + ": wanted " + wanted + ", found " + found),
      offset_(offset),
      wanted_(wanted),
      found_(found) {}

void TextCursor::skip_space() {
  while (at_ < text_.size() && is_space(text_[at_])) ++at_;
}

char TextCursor::peek() {
  skip_space();
  return at_end() ? '\0' : text_[at_];
}

bool TextCursor::take(char wanted) {
  skip_space();
  if (at_end() || text_[at_] != wanted) return false;
  ++at_;
  return true;
}

bool TextCursor::take(std::string_view wanted) {
  skip_space();
  if (text_.substr(at_, wanted.size()) != wanted) return false;
  at_ += wanted.size();
  return true;
}

void TextCursor::expect(char wanted) {
  if (!take(wanted)) fail(std::string("'") + wanted + "'");
}

void TextCursor::expect_end() {
  skip_space();
  if (!at_end()) fail("the end of the header");
}

int64_t TextCursor::read_count() {
  skip_space();
  const size_t start = at_;
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
  const std::string_view digits = text_.substr(start, at_ - start);
  if (digits.empty()) fail("a count in decimal digits");
  const auto start_offset = static_cast<int64_t>(start);
  if (digits.size() > 1 && digits[0] == '0') fail_at(start_offset, "a count without leading zeros", quoted(digits));
  int64_t count = 0;
  for (const char digit : digits)
    if (__builtin_mul_overflow(count, int64_t{10}, &count) || __builtin_add_overflow(count, digit - '0', &count))
      fail_at(start_offset, "a count of at most " + std::to_string(std::numeric_limits<int64_t>::max()),
              quoted(digits));
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) fail("a whole number");
  return count;
}

std::string TextCursor::read_until(char end) {
  const size_t start = at_;
  for (; !at_end(); ++at_) {
    if (text_[at_] == end) return std::string(text_.substr(start, at_++ - start));
    if (text_[at_] == '\\' || static_cast<unsigned char>(text_[at_]) < 0x20) fail("a string without escapes");
  }
  fail(std::string("the closing ") + end);
}

void TextCursor::fail(const std::string& wanted) const {
  fail_at(offset(), wanted, at_end() ? "the end of the header" : quoted(text_.substr(at_, 1)));
}

void TextCursor::fail_at(int64_t offset, const std::string& wanted, const std::string& found) const {
  throw SyntaxError(offset, wanted, found);
}

std::string quoted(std::string_view text) {
  constexpr size_t kShownBytes = 80;
  constexpr char kHex[] = "0123456789abcdef";
  std::string result = "\"";
  for (const char c : text.substr(0, kShownBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && c != '"' && c != '\\') {
      result += c;
    } else {
      result += "\\x";
      result += kHex[byte >> 4];
      result += kHex[byte & 15];
    }
  }
  return result + (text.size() > kShownBytes ? "\"..." : "\"");
}

}  // namespace memsys
