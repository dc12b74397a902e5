// Changes headers as someone would who knows the formats: whole words and numbers are exchanged, doubled, removed and
// moved, fresh headers of drawn tensors come in, and the length in front mostly fits again afterwards.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/fuzz/random.h"
#include "csrc/fuzz/target.h"

namespace {

using fuzz::Random;

const std::vector<std::string> kWords{"\"dtype\"",
                                      "\"shape\"",
                                      "\"data_offsets\"",
                                      "\"__metadata__\"",
                                      "\"F32\"",
                                      "\"BF16\"",
                                      "\"F8_E4M3\"",
                                      "\"F4\"",
                                      "\"C64\"",
                                      "\"U8\"",
                                      "\"BOOL\"",
                                      "\"a\"",
                                      "\"\"",
                                      "\"\\u00e9\"",
                                      "\"\\ud83d\"",
                                      "\"\\udc00\"",
                                      "\"\\ud83d\\ude00\"",
                                      "\"\xC3\xA9\"",
                                      "\"\\n\"",
                                      "\"\x7F\"",
                                      "\"\xED\xA0\x80\"",
                                      "'descr'",
                                      "'shape'",
                                      "'fortran_order'",
                                      "'<f4'",
                                      "'|u1'",
                                      "'|O'",
                                      "'>f4'",
                                      "'<c16'",
                                      "True",
                                      "False",
                                      "null",
                                      "true",
                                      "(",
                                      ")",
                                      "[",
                                      "]",
                                      "{",
                                      "}",
                                      ",",
                                      ":",
                                      "-1",
                                      "1e9",
                                      "2.0",
                                      "00",
                                      " ",
                                      "\\",
                                      "NaN",
                                      "[[[[[[[["};

struct Parts {
  bool is_npy = false;
  unsigned char major = 1;
  std::string text, data;
};

size_t length_bytes(const Parts& parts) { return !parts.is_npy ? 8 : parts.major == 1 ? 2 : 4; }

Parts split(const std::string& input) {
  Parts parts;
  parts.is_npy = input.starts_with("\x93NUMPY") && input.size() > 8;
  if (parts.is_npy) parts.major = static_cast<unsigned char>(input[6]);
  const size_t start = (parts.is_npy ? 8 : 0) + length_bytes(parts);
  if (input.size() <= start) return parts;
  uint64_t length = 0;
  for (size_t index = 0; index < length_bytes(parts); ++index)
    length |= uint64_t{static_cast<unsigned char>(input[start - length_bytes(parts) + index])} << (8 * index);
  parts.text = input.substr(start, static_cast<size_t>(std::min<uint64_t>(length, input.size() - start)));
  parts.data = input.substr(start + parts.text.size());
  return parts;
}

std::string join(const Parts& parts, Random& random) {
  std::string result;
  if (parts.is_npy) result = std::string("\x93NUMPY") + static_cast<char>(parts.major) + '\0';
  uint64_t length = parts.text.size();
  if (random.one_in(24)) length = random.one_in(2) ? length + random.below(5) - 2 : fuzz::edge_number(random);
  for (size_t index = 0; index < length_bytes(parts); ++index) result += static_cast<char>(length >> (8 * index));
  return result + parts.text + parts.data;
}

// Words in their quotes, numbers, runs of anything else that belongs together, single marks.
std::vector<std::string> tokens_of(const std::string& text) {
  std::vector<std::string> tokens;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + 1;
    if (text[at] == '"' || text[at] == '\'') {
      while (end < text.size() && text[end] != text[at]) end += text[end] == '\\' ? 2 : 1;
      end = std::min(text.size(), end + 1);
    } else if (std::isalnum(static_cast<unsigned char>(text[at])) != 0) {
      while (end < text.size() && std::isalnum(static_cast<unsigned char>(text[end])) != 0) ++end;
    }
    tokens.push_back(text.substr(at, end - at));
    at = end;
  }
  return tokens;
}

std::string drawn_number(Random& random) { return std::to_string(fuzz::edge_number(random)); }

// Mostly right, so that what follows a right header is reached; a wrong number now and then.
std::string drawn_safetensors(Random& random) {
  static const std::vector<std::pair<std::string, uint64_t>> kTypes{{"F32", 4}, {"BF16", 2}, {"U8", 1},     {"I64", 8},
                                                                    {"C64", 8}, {"BOOL", 1}, {"F8_E5M2", 1}};
  std::string json = random.one_in(3) ? "{\"__metadata__\":{\"format\":\"pt\"}," : "{";
  uint64_t at = 0;
  const size_t count = random.below(5);
  for (size_t index = 0; index < count; ++index) {
    const auto& [name, size] = random.pick(kTypes);
    uint64_t bytes = size;
    std::string shape;
    for (size_t rank = random.below(4); rank > 0; --rank) {
      const uint64_t dimension = random.one_in(30) ? uint64_t{1} << random.below(50) : random.below(9);
      shape += (shape.empty() ? "" : ",") + std::to_string(dimension);
      bytes *= dimension;
    }
    if (random.one_in(30)) bytes += random.below(3) - 1;
    json += (index == 0 ? "\"" : ",\"") + std::string(1 + random.below(2), static_cast<char>('a' + index)) +
            "\":{\"dtype\":\"" + name + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(at) + "," +
            std::to_string(at + bytes) + "]}";
    at += bytes;
  }
  return json + "}";
}

std::string drawn_npy(Random& random) {
  static const std::vector<std::string> kTypes{"<f4", "|u1", "<i8", "<c16", "|b1", "<f2", "<u2"};
  std::string shape;
  for (size_t rank = random.below(4); rank > 0; --rank) shape += std::to_string(random.below(9)) + ", ";
  return "{'descr': '" + random.pick(kTypes) + "', 'fortran_order': " + (random.one_in(2) ? "True" : "False") +
         ", 'shape': (" + shape + "), }" + std::string(random.below(30), ' ') + "\n";
}

void change_tokens(std::string& text, Random& random) {
  auto tokens = tokens_of(text);
  if (tokens.empty()) tokens.emplace_back("{}");
  const size_t at = random.below(tokens.size());
  const auto here = tokens.begin() + static_cast<std::ptrdiff_t>(at);
  const size_t count = std::min(tokens.size() - at, 1 + random.below(random.one_in(3) ? 20 : 3));
  switch (random.below(6)) {
    case 0:
      *here = random.pick(kWords);
      break;
    case 1: {  // a number, wherever the next one stands
      const auto number = std::find_if(here, tokens.end(), [](const auto& one) { return std::isdigit(one[0]) != 0; });
      if (number != tokens.end()) *number = drawn_number(random);
      break;
    }
    case 2: {
      const std::vector<std::string> some(here, here + static_cast<std::ptrdiff_t>(count));
      tokens.insert(tokens.begin() + static_cast<std::ptrdiff_t>(random.below(tokens.size() + 1)), some.begin(),
                    some.end());
      break;
    }
    case 3:
      tokens.erase(here, here + static_cast<std::ptrdiff_t>(count));
      break;
    case 4:
      std::swap(*here, tokens[random.below(tokens.size())]);
      break;
    default:
      fuzz::change_bytes(*here, random);
  }
  text.clear();
  for (const std::string& token : tokens) text += token;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Random random(seed);
  std::string input(reinterpret_cast<const char*>(data), size);
  if (random.one_in(10)) {
    fuzz::change_bytes(input, random);
  } else {
    Parts parts = split(input);
    if (random.one_in(24)) {
      parts = {random.one_in(4), static_cast<unsigned char>(1 + random.below(3)), "", ""};
      parts.text = parts.is_npy ? drawn_npy(random) : drawn_safetensors(random);
    } else if (random.one_in(24)) {
      parts.data.resize(random.below(80));
    } else {
      change_tokens(parts.text, random);
    }
    input = join(parts, random);
  }
  const size_t kept = std::min(input.size(), max_size);
  std::memcpy(data, input.data(), kept);
  return kept;
}
