// Tensors read from a file: whole, in several pieces at once, whatever the system does to single attempts, and with a
// typed error where a read cannot be completed; after an error nothing writes to the target any more.
#include <filesystem>
#include <fstream>

#include "csrc/engine/rig.h"
#include "csrc/io/tensor_bytes.h"
#include "engine/tensor_reader.h"

using namespace memsys;
using engine_test::holds;
using engine_test::pattern;
using io_test::Block;
using io_test::Folder;

namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;  // of tensor_reader.cpp
constexpr int64_t kManyBytes = 3 * kPieceBytes + 12'345;

// Writes `bytes` of a pattern as a vector of uint8.
std::string write_npy(const Folder& folder, int64_t bytes, const Block& content) {
  const std::string path = folder.path() + "/" + std::to_string(bytes) + ".npy";
  std::ofstream file(path, std::ios::binary);
  file << fixture::npy("{'descr': '|u1', 'fortran_order': False, 'shape': (" + std::to_string(bytes) + ",), }\n", 0);
  file.write(reinterpret_cast<const char*>(content.data()), bytes);
  return path;
}

std::shared_ptr<Runtime> faulty_runtime(IoEngineChoice choice = IoEngineChoice::threads) {
  return make_runtime({.seed = {}, .io = {.choice = choice}, .faults = FaultSeam::faulty});
}

// Reads the file's one tensor and compares; the bytes after it must stay as they are.
void check_read(const std::shared_ptr<Runtime>& runtime, const std::string& path, const Block& wanted, int64_t bytes) {
  const TensorReader reader(runtime, path);
  const TensorEntry& entry = reader.header().tensors.at(0);
  CHECK_EQUAL(entry.size_bytes, bytes);
  const Block found(bytes + 64);
  std::memset(found.data(), 0xA5, static_cast<size_t>(bytes + 64));
  reader.read(entry, found.data());
  CHECK(holds(found.data(), wanted, bytes));
  for (int64_t at = bytes; at < bytes + 64; ++at) CHECK_EQUAL(int{found.data()[at]}, 0xA5);
}

// Opens the reader before the plan is armed, so that the plan's attempts are those of the pieces.
template <class Error>
void check_failure(const IoFaultPlan& plan) {
  const Folder folder;
  const Block content = pattern(kManyBytes, 5);
  const std::string path = write_npy(folder, kManyBytes, content);
  const auto runtime = faulty_runtime();
  const TensorReader reader(runtime, path);
  const Block found(kManyBytes);
  runtime->faulty_io->arm(plan);
  CHECK_THROWS(reader.read(reader.header().tensors.at(0), found.data()), Error);
  CHECK(runtime->faulty_io->attempt_count() >= 4);  // the other pieces were tried all the same
  runtime->faulty_io->arm({});
  std::memset(found.data(), 0, static_cast<size_t>(kManyBytes));
  reader.read(reader.header().tensors.at(0), found.data());  // and the reader works on
  CHECK(holds(found.data(), content, kManyBytes));
}

}  // namespace

TEST(reader_reads_files_of_any_number_of_pieces) {
  const Folder folder;
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4097}, kPieceBytes - 1, kPieceBytes, kPieceBytes + 1,
                              2 * kPieceBytes, kManyBytes}) {
    const Block content = pattern(bytes, static_cast<uint64_t>(bytes));
    const std::string path = write_npy(folder, bytes, content);
    for (const auto choice : {IoEngineChoice::threads, IoEngineChoice::automatic})
      check_read(make_runtime({.seed = {}, .io = {.choice = choice}}), path, content, bytes);
    check_read(make_runtime({.seed = 3, .io = {}}), path, content, bytes);
  }
}

TEST(reader_reads_each_tensor_of_a_safetensors_file) {
  const Folder folder;
  const std::string path = folder.path() + "/model.safetensors";
  std::ofstream(path, std::ios::binary) << fixture::safetensors(
                                               "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                                               "\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]}}",
                                               0)
                                        << "abcdefgh";
  const TensorReader reader(make_runtime({}), path);
  CHECK_EQUAL(reader.header().tensors.size(), size_t{2});
  for (const TensorEntry& entry : reader.header().tensors) {
    std::string found(static_cast<size_t>(entry.size_bytes), '.');
    reader.read(entry, found.data());
    CHECK_EQUAL(found, std::string(entry.name == "a" ? "abc" : "defgh"));
  }
}

TEST(reader_completes_short_and_interrupted_reads) {
  const Folder folder;
  const Block content = pattern(kManyBytes, 5);
  const std::string path = write_npy(folder, kManyBytes, content);
  for (const IoFault fault : {IoFault::short_transfer, IoFault::interrupted, IoFault::again})
    for (int64_t at = 0; at < 6; ++at) {
      const auto runtime = faulty_runtime(at % 2 == 0 ? IoEngineChoice::threads : IoEngineChoice::automatic);
      // A short transfer every time halves what is left until one byte is.
      const bool is_persistent = fault == IoFault::short_transfer && at == 5;
      runtime->faulty_io->arm(
          {.fault = fault, .at = at, .span = is_persistent ? FaultSpan::persistent : FaultSpan::once});
      check_read(runtime, path, content, kManyBytes);
      CHECK(runtime->faulty_io->attempt_count() >= 4);
    }
}

TEST(reader_throws_what_a_piece_failed_with) {
  for (int64_t at = 0; at < 4; ++at) {
    check_failure<SpillError>({.fault = IoFault::io_error, .at = at});
    check_failure<CorruptionError>({.fault = IoFault::truncated, .at = at});
  }
  check_failure<SpillError>({.fault = IoFault::io_error, .at = 0, .span = FaultSpan::persistent});
  check_failure<SpillError>({.fault = IoFault::interrupted, .at = 0, .span = FaultSpan::persistent});
  check_failure<CorruptionError>({.fault = IoFault::truncated, .at = 1, .span = FaultSpan::persistent});
}

TEST(reader_notices_a_file_that_was_cut_after_its_header_was_read) {
  const Folder folder;
  const std::string path = write_npy(folder, kManyBytes, pattern(kManyBytes, 1));
  const TensorReader reader(make_runtime({}), path);
  std::filesystem::resize_file(path, kPieceBytes + 1000);
  const Block found(kManyBytes);
  CHECK_THROWS(reader.read(reader.header().tensors.at(0), found.data()), CorruptionError);
  CHECK_THROWS(TensorReader(make_runtime({}), path), CorruptionError);  // and when it is opened anew
}

TEST(reader_refuses_what_it_cannot_open_or_write_to) {
  const Folder folder;
  CHECK_THROWS(TensorReader(make_runtime({}), folder.path() + "/none.npy"), SpillError);
  CHECK_THROWS(TensorReader(make_runtime({}), folder.path()), Error);
  const std::string path = write_npy(folder, 100, pattern(100, 1));
  const TensorReader reader(make_runtime({}), path);
  CHECK_THROWS(reader.read(reader.header().tensors.at(0), nullptr), InputError);
}

// A failing task of somebody else ends the wait; the target must not be written to after read() has left.
TEST(reader_stays_until_its_pieces_are_done_though_a_foreign_task_fails) {
  const Folder folder;
  const Block content = pattern(kManyBytes, 9);
  const std::string path = write_npy(folder, kManyBytes, content);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto runtime = make_runtime({.seed = seed, .io = {}});
    const TensorReader reader(runtime, path);
    const QueueId foreign = runtime->executor->create_queue("foreign");
    runtime->executor->post(foreign, [] { throw std::runtime_error("foreign"); });
    const Block found(kManyBytes);
    bool is_foreign_seen = false;
    try {
      reader.read(reader.header().tensors.at(0), found.data());
    } catch (const std::runtime_error&) {
      is_foreign_seen = true;
    }
    CHECK(holds(found.data(), content, kManyBytes));
    if (!is_foreign_seen) CHECK_THROWS(runtime->executor->drain(), std::runtime_error);
    runtime->executor->destroy_queue(foreign);
  }
}
