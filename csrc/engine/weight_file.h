// A file of weights, opened once and believed only as long as it stays as it was: its header was checked, its identity
// is compared before and after each read, its bytes come past the page cache and are compared with their checksums
// before anyone is told that they are there. Read by piece, several in flight.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime.h"
#include "engine/unit_checks.h"
#include "io/file_identity.h"
#include "io/tensor_file.h"

namespace memsys {

class WeightFile : public std::enable_shared_from_this<WeightFile> {
 public:
  using Finish = std::function<void(std::exception_ptr)>;

  // Throws SpillError or CorruptionError.
  static std::shared_ptr<WeightFile> open(std::shared_ptr<Runtime> runtime, const std::string& path,
                                          DirectMode direct = DirectMode::automatic,
                                          VerifyMode verify = VerifyMode::first);
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  const TensorFile& header() const { return header_; }
  const std::string& path() const { return header_.path; }
  bool is_direct() const { return file_->is_direct(); }

  // The CRC32C of [offset, offset + size) in units of `unit_bytes`: of whole pages, ranges that do not overlap. Throws
  // InputError.
  void set_checksums(int64_t offset_bytes, int64_t size_bytes, int64_t unit_bytes, std::vector<uint32_t> values);

  // What `start_read` needs at its target: whole pages around the range, which begins phase_of(offset) bytes into it.
  static int64_t room_bytes(int64_t offset_bytes, int64_t size_bytes);
  static int64_t phase_of(int64_t offset_bytes) { return offset_bytes % kFilePageBytes; }

  // Reads the pages around [offset, offset + size) to `target`, which is page-aligned and stays until `finish` is
  // called: once, from a task of the executor, with the error that the caller will see. Units that lie wholly inside
  // the range are verified, so ask for whole ones. Throws InputError for a range that is not in the file, and Error
  // where the executor takes no task; `finish` is not called then.
  void start_read(int64_t offset_bytes, int64_t size_bytes, void* target, Finish finish);
  // Reads exactly the range to any address, by way of memory of its own, with all units that the range touches
  // verified. Blocks (the GIL released); throws what start_read would have told.
  void read(int64_t offset_bytes, int64_t size_bytes, void* target);

  // Pieces that came in, and their bytes with the pages around.
  int64_t read_count() const { return read_count_; }
  int64_t read_bytes() const { return read_bytes_; }

 private:
  struct Read;
  using ReadRef = std::shared_ptr<Read>;

  WeightFile(std::shared_ptr<Runtime> runtime, std::shared_ptr<File> file, TensorFile header, VerifyMode verify);
  void expect_range(int64_t offset_bytes, int64_t size_bytes) const;
  void start_piece(const ReadRef& read, const ByteSpan& piece);
  void take_piece(const ReadRef& read, const ByteSpan& piece, std::exception_ptr error);
  bool is_left_to_check(const ReadRef& read, const ByteSpan& piece, const ByteSpan& inside);
  std::exception_ptr check_piece(const Read& read, const ByteSpan& piece) const;
  std::exception_ptr find_change(int64_t offset_bytes) const;
  std::string place_of(int64_t offset_bytes) const;
  std::exception_ptr with_place(std::exception_ptr error, int64_t offset_bytes) const;

  const std::shared_ptr<Runtime> runtime_;
  const std::shared_ptr<File> file_;
  const TensorFile header_;
  const std::string absolute_path_;
  const FileIdentity opened_;                // of the bytes that are read
  const std::optional<FileIdentity> named_;  // of what the name led to then
  UnitChecks checks_;
  std::atomic<int64_t> read_count_{0}, read_bytes_{0};
};

}  // namespace memsys
