// The strings of JSON (RFC 8259) on top of TextCursor: all that a parser of a known, flat document needs. A parser
// for arbitrary documents would have to accept, and recurse into, what no tensor header contains.
#pragma once

#include <string>
#include <string_view>

#include "io/text_cursor.h"

namespace memsys {

class JsonCursor : public TextCursor {
 public:
  using TextCursor::TextCursor;

  // A string with its escapes decoded. Refuses raw control characters, invalid UTF-8 and lone surrogates.
  std::string read_string();
  // Calls member(key, key_offset) for every member of an object; it reads the value. Duplicate keys are its affair.
  template <typename Member>
  void read_object(Member member) {
    expect('{');
    if (take('}')) return;
    do {
      skip_space();
      const int64_t key_offset = offset();
      const std::string key = read_string();
      expect(':');
      member(key, key_offset);
    } while (take(','));
    expect('}');
  }

 private:
  void read_escape(std::string& target);
  uint32_t read_four_hex();
  void read_utf8(std::string& target);
};

}  // namespace memsys
