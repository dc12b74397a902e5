// The safetensors parser reads what the format says, refuses every kind of damage by name, and never crashes.
#include "csrc/io/tensor_bytes.h"

using namespace memsys;
using fixture::parse;
using fixture::refusal;
using fixture::safetensors;

namespace {

// One tensor "a" with these fields over 8 data bytes; the message's part after the tensor's name.
std::string refusal_of(const std::string& fields) {
  const std::string message = refusal(safetensors("{\"a\":{" + fields + "}}", 8)), start = "f: tensor \"a\": ";
  return message.starts_with(start) ? message.substr(start.size()) : message;
}

std::string member(const std::string& name, int64_t begin, int64_t end) {
  return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) + "],\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

const std::string kGood =
    " {\"__metadata__\":{\"format\":\"pt\",\"n\\u00e9\\ud83d\\ude00\":\"a\\n\"},"
    "\"w\": {\"shape\":[2,3],\"dtype\":\"BF16\",\"data_offsets\":[4,16]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
    "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[16,16]}}  ";

}  // namespace

TEST(safetensors_good_file) {
  const TensorFile file = parse(safetensors(kGood, 16));
  const auto start = static_cast<int64_t>(8 + kGood.size());
  CHECK_EQUAL(file.path, "f");
  CHECK_EQUAL(file.file_bytes, start + 16);
  CHECK_EQUAL(file.tensors.size(), 3u);
  CHECK_EQUAL(file.tensors[0].name, "b");
  CHECK(file.tensors[0].shape.empty());
  CHECK_EQUAL(file.tensors[1].name, "w");
  CHECK(file.tensors[1].dtype == TensorType::bfloat16);
  CHECK((file.tensors[1].shape == std::vector<int64_t>{2, 3}));
  CHECK_EQUAL(file.tensors[1].offset_bytes, start + 4);
  CHECK_EQUAL(file.tensors[1].size_bytes, 12);
  CHECK_EQUAL(file.tensors[2].size_bytes, 0);
  CHECK_EQUAL(file.metadata.at("format"), "pt");
  CHECK_EQUAL(file.metadata.at("n\xC3\xA9\xF0\x9F\x98\x80"), "a\n");
  CHECK(parse(safetensors("{}", 0)).tensors.empty());
}

TEST(safetensors_knows_its_types) {
  const std::vector<std::pair<std::string, int>> types{
      {"BOOL", 1},    {"U8", 1},          {"I8", 1},          {"U16", 2},     {"I16", 2},  {"U32", 4}, {"I32", 4},
      {"U64", 8},     {"I64", 8},         {"F8_E4M3", 1},     {"F8_E5M2", 1}, {"BF16", 2}, {"F16", 2}, {"F32", 4},
      {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"F64", 8},     {"C64", 8}};
  for (const auto& [name, bytes] : types) {
    const std::string json =
        "{\"a\":{\"dtype\":\"" + name + "\",\"shape\":[3],\"data_offsets\":[0," + std::to_string(3 * bytes) + "]}}";
    const TensorFile file = parse(safetensors(json, 3 * bytes));
    CHECK_EQUAL(tensor_type_name(file.tensors[0].dtype), name);
    CHECK_EQUAL(element_bytes(file.tensors[0].dtype), bytes);
  }
}

TEST(safetensors_refuses_bad_lengths) {
  CHECK_EQUAL(refusal("1234567"),
              "f: byte 0: wanted a .safetensors or .npy file with a header length of 8 bytes, found 7 bytes");
  CHECK_EQUAL(refusal(fixture::little_endian(3, 8) + "{}"),
              "f: byte 0: wanted a header length of at most 2 bytes, found 3");
  CHECK_EQUAL(refusal(std::string(8, '\xFF')),
              "f: byte 0: wanted a header length of at most 0 bytes, found 18446744073709551615");
  const std::string long_header = fixture::little_endian(100'000'001, 8);
  const std::vector<uint8_t> start(long_header.begin(), long_header.end());
  CHECK_THROWS(tensor_header_bytes("f", start, int64_t{1} << 40), CorruptionError);
  CHECK_THROWS(tensor_header_bytes("f", start, -1), InputError);
  // A header that is not all there.
  const std::string good = safetensors("{}  ", 0);
  const std::vector<uint8_t> part(good.begin(), good.end() - 1);
  CHECK_EQUAL(tensor_header_bytes("f", part, 12), 12);
  CHECK_THROWS(parse_tensor_header("f", part, 12), CorruptionError);
}

TEST(safetensors_refuses_bad_tensors) {
  const std::string type = "\"dtype\":\"F32\",", shape = "\"shape\":[2],", offsets = "\"data_offsets\":[0,8]";
  CHECK_EQUAL(refusal_of(type + shape + offsets), "accepted");
  CHECK_EQUAL(refusal_of("\"dtype\":\"F31\"," + shape + offsets),
              "byte 22: wanted a dtype of whole bytes that is known here, such as \"F32\", found \"F31\"");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[3]," + offsets),
              "byte 9: wanted 12 bytes for F32 of shape [3], found 8 bytes in data_offsets [0, 8)");
  CHECK_EQUAL(refusal_of(type + shape + "\"data_offsets\":[0,9]"),
              "byte 9: wanted data_offsets inside the file's 8 data bytes, found [0, 9)");
  CHECK_EQUAL(refusal_of(type + shape + "\"data_offsets\":[8,0]"),
              "byte 9: wanted data_offsets inside the file's 8 data bytes, found [8, 0)");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[4611686018427387904,4]," + offsets),
              "byte 9: wanted a size that fits 64 bits, found F32 of shape [4611686018427387904, 4]");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[0,4611686018427387904]," + offsets),
              "byte 9: wanted a size that fits 64 bits, found F32 of shape [0, 4611686018427387904]");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[9223372036854775808]," + offsets),
              "byte 37: wanted a count of at most 9223372036854775807, found \"9223372036854775808\"");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[-2]," + offsets), "byte 37: wanted a count in decimal digits, found \"-\"");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[2.0]," + offsets), "byte 38: wanted a whole number, found \".\"");
  CHECK_EQUAL(refusal_of(type + "\"shape\":[02]," + offsets),
              "byte 37: wanted a count without leading zeros, found \"02\"");
  CHECK_EQUAL(refusal_of(type + shape + "\"data_offsets\":[0]"), "byte 57: wanted ',', found \"]\"");
  CHECK_EQUAL(refusal_of(type + offsets),
              "byte 9: wanted \"dtype\", \"shape\" and \"data_offsets\", found an object without all three");
  CHECK_EQUAL(refusal_of(type + shape + type + offsets), "byte 40: wanted every field once, found a second \"dtype\"");
  CHECK_EQUAL(refusal_of("\"crc\":1," + type + shape + offsets),
              "byte 14: wanted \"dtype\", \"shape\" or \"data_offsets\", found \"crc\"");
  std::string dimensions = "1";
  for (int rank = 1; rank < 64; ++rank) dimensions += ",1";
  CHECK(refusal_of(type + "\"shape\":[" + dimensions + ",1]," + offsets).find("wanted at most 64 dimensions") !=
        std::string::npos);
}

TEST(safetensors_refuses_bad_covers) {
  const std::string overlap = "{" + member("a", 0, 4) + "," + member("b", 2, 8) + "}";
  CHECK_EQUAL(refusal(safetensors(overlap, 8)),
              "f: tensor \"b\": byte " + std::to_string(8 + overlap.size() + 2) + ": wanted data from byte " +
                  std::to_string(8 + overlap.size() + 4) + ", where the tensor before it ends, found an overlap");
  const std::string hole = "{" + member("a", 0, 4) + "," + member("b", 5, 8) + "}";
  CHECK_EQUAL(refusal(safetensors(hole, 8)), "f: tensor \"b\": byte " + std::to_string(8 + hole.size() + 5) +
                                                 ": wanted data from byte " + std::to_string(8 + hole.size() + 4) +
                                                 ", where the tensor before it ends, found a hole");
  const std::string twice = "{" + member("a", 0, 4) + "," + member("b", 0, 4) + "}";
  CHECK(refusal(safetensors(twice, 4)).ends_with("found an overlap"));
  const std::string rest = "{" + member("a", 0, 4) + "}";
  CHECK_EQUAL(refusal(safetensors(rest, 7)), "f: byte " + std::to_string(8 + rest.size() + 4) +
                                                 ": wanted the end of the file, for no tensor holds more, found 3 more "
                                                 "bytes");
}

TEST(safetensors_refuses_bad_json) {
  const auto refused = [](const std::string& json) { return refusal(safetensors(json, 0)); };
  CHECK_EQUAL(refused(""), "f: byte 8: wanted '{', found the end of the header");
  CHECK_EQUAL(refused("[]"), "f: byte 8: wanted '{', found \"[\"");
  CHECK_EQUAL(refused("{} x"), "f: byte 11: wanted the end of the header, found \"x\"");
  CHECK_EQUAL(refused(std::string("{}\0", 3)), "f: byte 10: wanted the end of the header, found \"\\x00\"");
  CHECK_EQUAL(refused("{" + member("a", 0, 0) + "," + member("a", 0, 0) + "}"),
              "f: byte 61: wanted every key once, found a second \"a\"");
  CHECK_EQUAL(refused("{\"__metadata__\":{},\"__metadata__\":{}}"),
              "f: byte 27: wanted every key once, found a second \"__metadata__\"");
  CHECK_EQUAL(refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"1\"}}"),
              "f: byte 33: wanted every key of the metadata once, found a second \"k\"");
  CHECK_EQUAL(refused("{\"__metadata__\":{\"k\":1}}"), "f: byte 29: wanted '\"', found \"1\"");
  CHECK_EQUAL(refused("{\"a\nb\":{}}"), "f: byte 11: wanted a string without raw control characters, found \"\\x0a\"");
  CHECK_EQUAL(refused("{\"a\\nb\":{}}"), "f: byte 9: wanted a name without control characters, found \"a\\x0ab\"");
  CHECK_EQUAL(refused("{\"a\\q\":{}}"), "f: byte 12: wanted an escape of JSON, found \"q\"");
  CHECK_EQUAL(refused("{\"\\u12g4\":{}}"), "f: byte 14: wanted four hexadecimal digits, found \"g\"");
  CHECK_EQUAL(refused("{\"\\udc00\":{}}"), "f: byte 12: wanted a high surrogate first, found a low one");
  CHECK_EQUAL(refused("{\"\\ud800x\":{}}"), "f: byte 16: wanted the low surrogate of a pair, found \"x\"");
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8", "\xC3\"", "\xE2\x82\"", "\xFF"})
    CHECK(refused("{\"" + std::string(bad) + "\":{}}").starts_with("f: byte 10: wanted UTF-8, found "));
  CHECK_EQUAL(refused(member("a", 0, 0)), "f: byte 8: wanted '{', found \"\\x22\"");
}

TEST(safetensors_refuses_depth_and_crowds) {
  const std::string deep(1'000'000, '[');
  CHECK_EQUAL(refusal(safetensors(deep, 0)), "f: byte 8: wanted '{', found \"[\"");
  CHECK_EQUAL(refusal(safetensors("{\"a\":" + deep, 0)), "f: tensor \"a\": byte 13: wanted '{', found \"[\"");
  CHECK(
      refusal(safetensors("{\"a\":{\"shape\":" + deep, 0)).ends_with("wanted a count in decimal digits, found \"[\""));
  std::string crowd = "{";
  for (int64_t index = 0; index <= kMaxTensorCount; ++index)
    crowd += (index == 0 ? "" : ",") + member(std::to_string(index), 0, 0);
  CHECK(refusal(safetensors(crowd + "}", 0)).ends_with("wanted at most 1048576 tensors, found one more"));
}
