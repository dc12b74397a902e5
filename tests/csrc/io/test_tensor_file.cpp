// Headers read from real files, and damage by the thousand: whatever the bytes are, the parsers throw a typed
// error or return numbers that lie inside the file.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "csrc/io/tensor_bytes.h"
#include "io/tensor_file.h"

using namespace memsys;

namespace {

const std::vector<std::string>& good_files() {
  static const std::vector<std::string> files{
      fixture::safetensors("{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                           "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}}",
                           22),
      fixture::npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24),
      fixture::npy("{'descr': '<i2', 'fortran_order': True, 'shape': (5,), }\n", 10, 2)};
  return files;
}

// A folder of its own, removed with everything in it.
struct Folder {
  Folder() : path((std::filesystem::temp_directory_path() / "memsys-test-XXXXXX").string()) {
    if (mkdtemp(path.data()) == nullptr) check::fail(__FILE__, __LINE__, "no folder for the test: " + path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path + "/" + name, std::ios::binary) << bytes;
    return path + "/" + name;
  }
  std::string path;
};

void check_inside(const TensorFile& file) {
  for (const TensorEntry& entry : file.tensors) {
    CHECK(entry.offset_bytes >= 0 && entry.size_bytes >= 0);
    CHECK(entry.offset_bytes + entry.size_bytes <= file.file_bytes);
    CHECK(tensor_bytes(entry.dtype, entry.shape) == entry.size_bytes);
  }
}

std::string mutate(std::string bytes, std::mt19937_64& random) {
  static const std::string alphabet = "{}[]():,\"'\\u0123456789-.eE \n\x80\xFF";
  for (uint64_t count = 1 + random() % 4; count > 0; --count) {
    const size_t at = random() % bytes.size();
    switch (random() % 5) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = alphabet[random() % alphabet.size()];
        break;
      case 2:
        bytes.erase(at, 1 + random() % 8);
        break;
      case 3:
        bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 24));
        break;
      default:
        bytes.insert(at, 1, alphabet[random() % alphabet.size()]);
    }
    if (bytes.empty()) bytes = "x";
  }
  return bytes;
}

}  // namespace

TEST(tensor_file_reads_from_disk) {
  const Folder folder;
  for (const std::string& bytes : good_files()) {
    const auto file = File::open(folder.write("good", bytes), FileMode::read_only);
    const TensorFile found = read_tensor_header(*file), wanted = fixture::parse(bytes);
    CHECK_EQUAL(found.path, folder.path + "/good");
    CHECK_EQUAL(found.file_bytes, static_cast<int64_t>(bytes.size()));
    CHECK_EQUAL(found.tensors.size(), wanted.tensors.size());
    for (size_t index = 0; index < wanted.tensors.size(); ++index) {
      CHECK_EQUAL(found.tensors[index].name, wanted.tensors[index].name);
      CHECK_EQUAL(found.tensors[index].offset_bytes, wanted.tensors[index].offset_bytes);
    }
  }
}

TEST(tensor_file_names_the_bad_file) {
  const Folder folder;
  for (const char* bytes : {"", "short", "\x93NUMPY\x01"}) {
    const auto file = File::open(folder.write("bad", bytes), FileMode::read_only);
    std::string message;
    try {
      read_tensor_header(*file);
    } catch (const CorruptionError& error) {
      message = error.what();
    }
    CHECK(message.starts_with(folder.path + "/bad: byte "));
  }
}

TEST(tensor_header_refuses_every_truncation) {
  for (const std::string& bytes : good_files()) {
    check_inside(fixture::parse(bytes));
    for (size_t count = 0; count < bytes.size(); ++count)
      CHECK_THROWS(fixture::parse(bytes.substr(0, count)), CorruptionError);
  }
}

TEST(tensor_header_survives_mutations) {
  const char* given = std::getenv("MEMSYS_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("MEMSYS_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::string bytes = mutate(good_files()[random() % good_files().size()], random);
    try {
      check_inside(fixture::parse(bytes));
      ++accepted;
    } catch (const CorruptionError&) {
      ++refused;
    }
  }
  // Some mutations hit a name or the data and are harmless; most are not.
  CHECK(accepted > 0 && refused > 10'000);
}
