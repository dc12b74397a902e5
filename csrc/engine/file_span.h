// One block's bytes in the spill file. Only the aligned middle goes to the file, straight from and into the
// tensor's own memory; the ragged edges (under one sector each) stay in RAM, with a checksum of their own. Torch's
// blocks start at 64 modulo the page, so without this every direct transfer would need a bounce copy, which costs the
// compute threads their core. Every piece written has a checksum, and no read ends well without it.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>

#include "base/executor.h"
#include "base/small_memory.h"
#include "engine/spill_space.h"
#include "io/full_io.h"
#include "io/io_engine.h"

namespace memsys {

using Finish = std::function<void(std::exception_ptr)>;

struct FileLane {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<IoEngine> io;
  QueueId write_queue = 0;  // checksums of what leaves
  QueueId read_queue = 0;   // checksums of what comes back
};

class FileSpan : public std::enable_shared_from_this<FileSpan> {
 public:
  // Small enough that checksum and transfer of one tensor overlap, large enough for the device's full rate.
  static constexpr int64_t kPieceBytes = int64_t{4} << 20;

  // Takes its range at once. `phase` is the address of the bytes modulo the file's direct alignment.
  FileSpan(std::shared_ptr<SpillSpace> space, int64_t bytes, int64_t phase);
  ~FileSpan();
  FileSpan(const FileSpan&) = delete;
  FileSpan& operator=(const FileSpan&) = delete;

  // From a task of the write queue: `source` stays valid and unchanged until `finish`.
  void write(const void* source, const FileLane& lane, Finish finish);
  // From any thread: `target` has the same phase as the source had.
  void read(void* target, const FileLane& lane, Finish finish);

  int64_t file_bytes() const { return middle_bytes_; }
  // What stays in memory; for tests, which spoil it.
  std::span<unsigned char> edges() { return {edges_.data(), edges_.size()}; }

 private:
  struct Piece {
    int64_t begin_bytes, size_bytes;  // within the middle
    uint32_t checksum;
  };
  struct Progress;
  std::exception_ptr verify(const Piece& piece, const void* data) const;
  std::exception_ptr verify_edges(const unsigned char* bytes) const;
  uint32_t checksum_of_edges(const unsigned char* bytes) const;

  const std::shared_ptr<SpillSpace> space_;
  const std::shared_ptr<File> file_;
  int64_t bytes_, prefix_bytes_ = 0, middle_bytes_ = 0, offset_ = -1;
  SmallVector<unsigned char> edges_;  // prefix, then suffix
  uint32_t edge_checksum_ = 0;
  SmallVector<Piece> pieces_;
};

}  // namespace memsys
