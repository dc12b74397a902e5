// A position in a text of untrusted bytes, and the steps that the strict header parsers are made of. It never
// recurses, so that no depth of brackets can exhaust the stack.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace memsys {

// The text is not what the parser wanted at offset(), counted from the start of the text. The parser that knows
// the file turns it into a CorruptionError.
class SyntaxError : public Error {
 public:
  SyntaxError(int64_t offset, const std::string& wanted, const std::string& found);
  int64_t offset() const { return offset_; }
  const std::string& wanted() const { return wanted_; }
  const std::string& found() const { return found_; }

 private:
  int64_t offset_;
  std::string wanted_, found_;
};

class TextCursor {
 public:
  explicit TextCursor(std::string_view text) : text_(text) {}

  int64_t offset() const { return static_cast<int64_t>(at_); }
  void skip_space();  // space, tab, line feed, carriage return
  bool at_end() const { return at_ == text_.size(); }
  // The rest, these only after skip_space().
  char peek();  // 0 at the end
  bool take(char wanted);
  bool take(std::string_view wanted);
  void expect(char wanted);
  void expect_end();
  // Decimal digits alone: no sign, fraction, exponent or leading zero; fits int64_t.
  int64_t read_count();
  // Everything up to `end`, which is taken too; refuses backslashes and control characters.
  std::string read_until(char end);

  [[noreturn]] void fail(const std::string& wanted) const;  // found: the byte here
  [[noreturn]] void fail_at(int64_t offset, const std::string& wanted, const std::string& found) const;

 protected:
  std::string_view text_;
  size_t at_ = 0;
};

// Text for a message: quoted, cut at 80 bytes, with quotes, backslashes and bytes that a terminal should not see as
// \xNN.
std::string quoted(std::string_view text);

}  // namespace memsys
