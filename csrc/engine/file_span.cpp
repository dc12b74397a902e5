// See file_span.h.
#include "engine/file_span.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

#include "base/bytes.h"
#include "io/checksum.h"

namespace memsys {

namespace {

// An aligned block has no edges, and memcpy takes no null pointer even for 0 bytes.
void copy_edge(void* target, const void* source, int64_t bytes) {
  if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
}

// A transfer that cannot start ends as one that failed: whoever waits for it would wait for ever.
void transfer_or_fail(const FileLane& lane, const IoRequest& request, const Finish& done) {
  try {
    transfer_fully(lane.io, request, done);
  } catch (...) {
    done(std::current_exception());
  }
}

}  // namespace

// Counts pieces down; the last one reports the first error. Keeps the span alive meanwhile.
struct FileSpan::Progress {
  std::shared_ptr<const FileSpan> span;
  Finish finish;
  std::atomic<int64_t> left_count;
  std::mutex error_mutex;
  std::exception_ptr error;

  Progress(std::shared_ptr<const FileSpan> owner, Finish callback, int64_t count)
      : span(std::move(owner)), finish(std::move(callback)), left_count(count) {}
  void end_piece(std::exception_ptr piece_error) {
    if (piece_error) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::move(piece_error);
    }
    if (left_count.fetch_sub(1) == 1) finish(error);
  }
};

FileSpan::FileSpan(std::shared_ptr<SpillSpace> space, int64_t bytes, int64_t phase)
    : space_(std::move(space)), file_(space_->file()), bytes_(bytes) {
  const int64_t alignment = file_->is_direct() ? file_->direct_alignment() : 1;
  prefix_bytes_ = std::min(bytes, (alignment - phase % alignment) % alignment);
  middle_bytes_ = align_down(bytes - prefix_bytes_, alignment);
  edges_.resize(static_cast<size_t>(bytes - middle_bytes_));
  for (int64_t begin = 0; begin < middle_bytes_; begin += kPieceBytes)
    pieces_.push_back({begin, std::min(kPieceBytes, middle_bytes_ - begin), 0});
  if (middle_bytes_ > 0) offset_ = space_->allocate(middle_bytes_);
}

FileSpan::~FileSpan() {
  if (offset_ >= 0) space_->free(offset_);
}

void FileSpan::write(const void* source, const FileLane& lane, Finish finish) {
  const auto* bytes = static_cast<const unsigned char*>(source);
  const int64_t suffix_bytes = bytes_ - prefix_bytes_ - middle_bytes_;
  copy_edge(edges_.data(), bytes, prefix_bytes_);
  copy_edge(edges_.data() + prefix_bytes_, bytes + bytes_ - suffix_bytes, suffix_bytes);
  edge_checksum_ = checksum_of_edges(bytes);
  if (pieces_.empty()) return finish(nullptr);
  auto progress = make_small<Progress>(shared_from_this(), std::move(finish), static_cast<int64_t>(pieces_.size()));
  for (Piece& piece : pieces_) {
    const unsigned char* data = bytes + prefix_bytes_ + piece.begin_bytes;
    piece.checksum = crc32c(data, piece.size_bytes);
    transfer_or_fail(lane,
                     {.file = file_.get(),
                      .kind = IoKind::write,
                      .pointer = const_cast<unsigned char*>(data),  // a write only reads it
                      .offset = offset_ + piece.begin_bytes,
                      .bytes = piece.size_bytes},
                     [progress](std::exception_ptr error) { progress->end_piece(std::move(error)); });
  }
}

void FileSpan::read(void* target, const FileLane& lane, Finish finish) {
  auto* bytes = static_cast<unsigned char*>(target);
  const int64_t suffix_bytes = bytes_ - prefix_bytes_ - middle_bytes_;
  copy_edge(bytes, edges_.data(), prefix_bytes_);
  copy_edge(bytes + bytes_ - suffix_bytes, edges_.data() + prefix_bytes_, suffix_bytes);
  const std::exception_ptr spoilt = verify_edges(bytes);
  if (pieces_.empty() || spoilt) return lane.executor->post(lane.read_queue, [finish, spoilt] { finish(spoilt); });
  auto progress = make_small<Progress>(shared_from_this(), std::move(finish), static_cast<int64_t>(pieces_.size()));
  for (const Piece& piece : pieces_) {
    unsigned char* data = bytes + prefix_bytes_ + piece.begin_bytes;
    const auto check = [this, progress, &piece, data] { progress->end_piece(verify(piece, data)); };
    const auto arrived = [progress, check, executor = lane.executor.get(),
                          queue = lane.read_queue](std::exception_ptr error) {
      if (error) return progress->end_piece(std::move(error));
      try {
        executor->post(queue, check);
      } catch (...) {
        progress->end_piece(std::current_exception());
      }
    };
    transfer_or_fail(lane,
                     {.file = file_.get(),
                      .kind = IoKind::read,
                      .pointer = data,
                      .offset = offset_ + piece.begin_bytes,
                      .bytes = piece.size_bytes},
                     arrived);
  }
}

uint32_t FileSpan::checksum_of_edges(const unsigned char* bytes) const {
  const int64_t suffix_bytes = bytes_ - prefix_bytes_ - middle_bytes_;
  return crc32c(bytes + bytes_ - suffix_bytes, suffix_bytes, crc32c(bytes, prefix_bytes_));
}

std::exception_ptr FileSpan::verify_edges(const unsigned char* bytes) const {
  const uint32_t found = checksum_of_edges(bytes);
  if (found == edge_checksum_) return nullptr;
  return std::make_exception_ptr(CorruptionError(
      "edges of a spilled tensor, " + format_bytes(static_cast<int64_t>(edges_.size())) +
      " in memory: checksum wanted " + std::to_string(edge_checksum_) + ", found " + std::to_string(found) +
      "; something wrote to this memory; run once more under a memory checker"));
}

std::exception_ptr FileSpan::verify(const Piece& piece, const void* data) const {
  const uint32_t found = crc32c(data, piece.size_bytes);
  if (found == piece.checksum) return nullptr;
  return std::make_exception_ptr(CorruptionError(
      "spill file in " + file_->path() + ", offset " + std::to_string(offset_ + piece.begin_bytes) + ", " +
      format_bytes(piece.size_bytes) + ": checksum wanted " + std::to_string(piece.checksum) + ", found " +
      std::to_string(found) +
      "; the disk or the memory changed the bytes, or the tensor was written to while it was being saved; check the "
      "disk, or choose another spill_dir"));
}

}  // namespace memsys
