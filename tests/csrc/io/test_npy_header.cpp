// The .npy parser reads what NumPy writes, in all three versions, and refuses objects and every kind of damage.
#include "csrc/io/tensor_bytes.h"

using namespace memsys;
using fixture::npy;
using fixture::parse;
using fixture::refusal;

namespace {

std::string dictionary(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

std::string refusal_of(const std::string& text) { return refusal(npy(text, 24)); }

}  // namespace

TEST(npy_good_files) {
  for (const int major : {1, 2, 3}) {
    const std::string text = dictionary("'<f4'", "False", "(2, 3)") + "     \n";
    const std::string bytes = npy(text, 24, major);
    const TensorFile file = parse(bytes);
    CHECK_EQUAL(file.tensors.size(), 1u);
    const TensorEntry& entry = file.tensors[0];
    CHECK(entry.dtype == TensorType::float32);
    CHECK(entry.order == TensorOrder::row_major);
    CHECK((entry.shape == std::vector<int64_t>{2, 3}));
    CHECK_EQUAL(entry.offset_bytes, static_cast<int64_t>(bytes.size()) - 24);
    CHECK_EQUAL(entry.size_bytes, 24);
  }
  CHECK(parse(npy(dictionary("'|u1'", "True", "(3,)"), 3)).tensors[0].order == TensorOrder::column_major);
  CHECK(parse(npy(dictionary("'<c16'", "False", "()"), 16)).tensors[0].shape.empty());
  CHECK_EQUAL(parse(npy(dictionary("'<i8'", "False", "(0, 5)"), 0)).tensors[0].size_bytes, 0);
  CHECK_EQUAL(parse(npy("{\"shape\":(1,),\"descr\":\"|b1\",\"fortran_order\":False}", 9)).tensors[0].size_bytes, 1);
}

TEST(npy_refuses_bad_preludes) {
  const std::string good = npy(dictionary("'|u1'", "False", "(3,)"), 3);
  std::string bad = good;
  bad[6] = 4;
  CHECK_EQUAL(refusal(bad), "f: byte 6: wanted .npy version 1.0, 2.0 or 3.0, found 4.0");
  bad = good;
  bad[7] = 1;
  CHECK_EQUAL(refusal(bad), "f: byte 6: wanted .npy version 1.0, 2.0 or 3.0, found 1.1");
  bad = good;
  bad[9] = 1;
  CHECK(refusal(bad).starts_with("f: byte 8: wanted a header length of at most "));
  CHECK_EQUAL(refusal(good.substr(0, 7)), "f: byte 7: wanted the first 8 bytes of an .npy file, found 7");
  CHECK_EQUAL(refusal(good.substr(0, 9)), "f: byte 9: wanted the first 10 bytes of an .npy file, found 9");
  const std::string huge = npy("", 0, 2).substr(0, 8) + std::string(4, '\xFF');
  const std::vector<uint8_t> start(huge.begin(), huge.end());
  CHECK_THROWS(tensor_header_bytes("f", start, int64_t{1} << 40), CorruptionError);
}

TEST(npy_refuses_bad_types) {
  const auto refused = [](const std::string& descr) { return refusal_of(dictionary(descr, "False", "(3,)")); };
  CHECK_EQUAL(refused("'|O'"), "f: byte 20: wanted numbers, found Python objects (\"|O\"), which are never unpickled");
  CHECK_EQUAL(refused("'>f4'"), "f: byte 20: wanted little-endian numbers, found big-endian ones (\">f4\")");
  CHECK_EQUAL(refused("'<U4'"), "f: byte 20: wanted a numeric descr such as '<f4', found \"<U4\"");
  CHECK_EQUAL(refused("''"), "f: byte 20: wanted a numeric descr such as '<f4', found \"\"");
  CHECK_EQUAL(refused("[('x', '<f4')]"),
              "f: byte 20: wanted one plain type (save the fields of a structured array one by one), found \"[\"");
  CHECK_EQUAL(refused("'\\x3cf4'"), "f: byte 21: wanted a string without escapes, found \"\\x5c\"");
  CHECK_EQUAL(refused("'<f4"), "f: byte 20: wanted a numeric descr such as '<f4', found \"<f4, \"");
}

TEST(npy_refuses_bad_shapes_and_sizes) {
  const auto refused = [](const std::string& shape) { return refusal_of(dictionary("'<f4'", "False", shape)); };
  CHECK_EQUAL(refused("(6,)"), "accepted");
  CHECK_EQUAL(refused("(7,)"), "f: byte 67: wanted 28 data bytes for F32 of shape [7], found 24");
  CHECK_EQUAL(refused("(4611686018427387904, 2)"),
              "f: byte 10: wanted a size that fits 64 bits, found F32 of shape [4611686018427387904, 2]");
  CHECK_EQUAL(refused("(0, 4611686018427387904)"),
              "f: byte 10: wanted a size that fits 64 bits, found F32 of shape [0, 4611686018427387904]");
  CHECK_EQUAL(refused("(-1,)"), "f: byte 61: wanted a count in decimal digits, found \"-\"");
  CHECK_EQUAL(refused("(6)"), "f: byte 62: wanted ',', found \")\"");
  CHECK_EQUAL(refused("(2 3)"), "f: byte 63: wanted ',', found \"3\"");
  CHECK_EQUAL(refused("6"), "f: byte 60: wanted '(', found \"6\"");
  CHECK(refused(std::string(100'000, '(')).ends_with("wanted a count in decimal digits, found \"(\""));
}

TEST(npy_refuses_bad_dictionaries) {
  const std::string good = dictionary("'<f4'", "False", "(6,)");
  CHECK_EQUAL(refusal_of(good + "x"),
              "f: byte " + std::to_string(10 + good.size()) + ": wanted the end of the header, found \"x\"");
  CHECK_EQUAL(refusal_of(""), "f: byte 10: wanted '{', found the end of the header");
  CHECK_EQUAL(refusal_of("{}"),
              "f: byte 12: wanted 'descr', 'fortran_order' and 'shape', found a dictionary without all three");
  CHECK_EQUAL(refusal_of("{'descr': '<f4', 'descr': '<f4'}"),
              "f: byte 35: wanted every key once, found a second \"descr\"");
  CHECK_EQUAL(refusal_of("{'x': 1}"), "f: byte 15: wanted 'descr', 'fortran_order' or 'shape', found \"x\"");
  CHECK_EQUAL(refusal_of(dictionary("'<f4'", "0", "(6,)")), "f: byte 44: wanted True or False, found \"0\"");
  CHECK_EQUAL(refusal_of("{'shape': (6,) 'descr': '<f4'}"), "f: byte 25: wanted ',' or '}', found \"'\"");
}
