// See weight_file.h.
#include "engine/weight_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <utility>

#include "base/bytes.h"
#include "base/outlast.h"
#include "base/small_memory.h"
#include "engine/ticket.h"
#include "io/full_io.h"
#include "memory/buffer.h"
#include "memory/resources.h"

namespace memsys {
namespace {

// Small enough that transfer and verification of one tensor overlap, large enough for the disk's full rate.
constexpr int64_t kPieceBytes = 2 * kMiB;
// Of the memory that a blocking read passes its bytes through.
constexpr int64_t kBounceBytes = 8 * kMiB;

ByteSpan pages_around(const ByteSpan& span) {
  return {align_down(span.begin_bytes, kFilePageBytes), align_up(span.end_bytes, kFilePageBytes)};
}

}  // namespace

// One range under way. Counts its pieces down, and the share of the thread that starts them; the last one tells.
struct WeightFile::Read {
  std::shared_ptr<WeightFile> file;
  const ByteSpan wanted;
  char* const target;
  Finish finish;
  std::atomic<int64_t> left_count{1};
  std::mutex mutex;
  std::exception_ptr error;

  Read(std::shared_ptr<WeightFile> owner, const ByteSpan& span, void* memory, Finish callback)
      : file(std::move(owner)), wanted(span), target(static_cast<char*>(memory)), finish(std::move(callback)) {}
  char* address_of(int64_t offset_bytes) const {
    return target + (offset_bytes - align_down(wanted.begin_bytes, kFilePageBytes));
  }
  void keep(std::exception_ptr piece_error) {
    if (piece_error == nullptr) return;
    const std::lock_guard lock(mutex);
    if (error == nullptr) error = std::move(piece_error);
  }
  // Whether it was the last share.
  bool end_share(std::exception_ptr piece_error) {
    keep(std::move(piece_error));
    return left_count.fetch_sub(1) == 1;
  }
  void tell() {
    // Bytes that came without a checksum are right only if nobody wrote to the file meanwhile.
    if (error == nullptr) error = file->find_change(wanted.begin_bytes);
    // Let go first: whoever waits for `finish` may drop the file, and a task must not be the last to hold its engine.
    const Finish told = std::move(finish);
    file.reset();
    told(error);
  }
  void end_piece(std::exception_ptr piece_error) {
    if (end_share(std::move(piece_error))) tell();
  }
};

std::shared_ptr<WeightFile> WeightFile::open(std::shared_ptr<Runtime> runtime, const std::string& path,
                                             DirectMode direct, VerifyMode verify) {
  auto file = File::open(path, FileMode::read_only, direct);
  file->stop_read_ahead();
  TensorFile header = read_tensor_header(*file);
  file->drop_cached(0, header.file_bytes);
  return std::shared_ptr<WeightFile>(new WeightFile(std::move(runtime), std::move(file), std::move(header), verify));
}

WeightFile::WeightFile(std::shared_ptr<Runtime> runtime, std::shared_ptr<File> file, TensorFile header,
                       VerifyMode verify)
    : runtime_(std::move(runtime)),
      file_(std::move(file)),
      header_(std::move(header)),
      absolute_path_(std::filesystem::absolute(header_.path)),
      opened_(identity_of(*file_)),
      named_(identity_at(absolute_path_)),
      checks_(verify) {
  MEMSYS_EXPECT(opened_.size_bytes == header_.file_bytes, CorruptionError,
                "'" + header_.path + "': its size went from " + std::to_string(header_.file_bytes) + " to " +
                    std::to_string(opened_.size_bytes) +
                    " bytes while it was opened; stop what writes to it, then open it again");
}

void WeightFile::set_checksums(int64_t offset_bytes, int64_t size_bytes, int64_t unit_bytes,
                               std::vector<uint32_t> values) {
  expect_range(offset_bytes, size_bytes);
  checks_.add({offset_bytes, size_bytes, unit_bytes}, std::move(values));
}

int64_t WeightFile::room_bytes(int64_t offset_bytes, int64_t size_bytes) {
  return size_bytes == 0 ? 0 : pages_around({offset_bytes, checked_add(offset_bytes, size_bytes)}).size_bytes();
}

void WeightFile::start_read(int64_t offset_bytes, int64_t size_bytes, void* target, Finish finish) {
  expect_range(offset_bytes, size_bytes);
  MEMSYS_EXPECT(reinterpret_cast<uintptr_t>(target) % kFilePageBytes == 0, InputError,
                "weights are read to page-aligned memory: align the target to " + std::to_string(kFilePageBytes));
  const ByteSpan wanted{offset_bytes, offset_bytes + size_bytes};
  const ReadRef read = make_small<Read>(shared_from_this(), wanted, target, std::move(finish));
  read->keep(find_change(offset_bytes));
  if (read->error == nullptr && size_bytes > 0) {
    ByteSpan pages = pages_around(wanted);
    pages.end_bytes = std::min(pages.end_bytes, header_.file_bytes);
    const auto pieces = cut_pieces(pages, checks_.ranges_in(pages), kPieceBytes);
    read->left_count += static_cast<int64_t>(pieces.size());
    for (const ByteSpan& piece : pieces) start_piece(read, piece);
  }
  // Usually the pieces are still under way. Where none is, the end is told from a task all the same.
  if (read->end_share(nullptr)) runtime_->executor->post(runtime_->check_queue, [read] { read->tell(); });
}

void WeightFile::start_piece(const ReadRef& read, const ByteSpan& piece) {
  const IoRequest request{.file = file_.get(),
                          .kind = IoKind::read,
                          .pointer = read->address_of(piece.begin_bytes),
                          .offset = piece.begin_bytes,
                          .bytes = piece.size_bytes()};
  try {
    transfer_fully(runtime_->io, request,
                   [read, piece](std::exception_ptr error) { read->file->take_piece(read, piece, std::move(error)); });
  } catch (...) {
    // Never the last share: the starter's is still to come.
    read->end_share(with_place(std::current_exception(), std::max(piece.begin_bytes, read->wanted.begin_bytes)));
  }
}

// From a task of the io engine, whose threads are for transfers: what takes time goes on in the queue of checks. A task
// does not throw, and whatever fails here ends the piece: whoever waits for it would wait for ever.
void WeightFile::take_piece(const ReadRef& read, const ByteSpan& piece, std::exception_ptr error) {
  const ByteSpan inside{std::max(piece.begin_bytes, read->wanted.begin_bytes),
                        std::min(piece.end_bytes, read->wanted.end_bytes)};
  try {
    if (error == nullptr && is_left_to_check(read, piece, inside)) return;
    if (error != nullptr) error = with_place(error, inside.begin_bytes);
  } catch (...) {
    error = std::current_exception();
  }
  read->end_piece(error);
}

// Whether a task was posted that ends the piece.
bool WeightFile::is_left_to_check(const ReadRef& read, const ByteSpan& piece, const ByteSpan& inside) {
  read_count_ += 1;
  read_bytes_ += piece.size_bytes();
  const int descriptor =
      file_->descriptor_for(read->address_of(piece.begin_bytes), piece.begin_bytes, piece.size_bytes());
  const bool is_cached = descriptor != file_->direct_descriptor();
  if (!is_cached && !checks_.is_due(inside)) return false;
  runtime_->executor->post(runtime_->check_queue, [read, piece, inside, is_cached] {
    if (is_cached) read->file->file_->drop_cached(piece.begin_bytes, piece.size_bytes());
    read->end_piece(read->file->check_piece(*read, inside));
  });
  return true;
}

std::exception_ptr WeightFile::check_piece(const Read& read, const ByteSpan& piece) const {
  try {
    const auto mismatch = checks_.check(piece, read.address_of(piece.begin_bytes));
    if (!mismatch) return nullptr;
    throw CorruptionError(
        place_of(mismatch->unit.begin_bytes) + ": the checksum of " + std::to_string(mismatch->unit.size_bytes()) +
        " bytes is wrong: wanted " + std::to_string(mismatch->wanted) + ", found " + std::to_string(mismatch->found) +
        "; the disk or the memory changed them: check both (dmesg), and pack or download the file again");
  } catch (...) {
    return std::current_exception();
  }
}

std::exception_ptr WeightFile::find_change(int64_t offset_bytes) const {
  try {
    std::string change = describe_change(opened_, identity_of(*file_));
    const auto now_named = change.empty() && named_ ? identity_at(absolute_path_) : std::nullopt;
    if (now_named) change = describe_change(*named_, *now_named);
    if (change.empty()) return nullptr;
    throw CorruptionError(place_of(offset_bytes) + ": the file changed since it was opened: " + change +
                          "; stop what writes to it, check or restore it, then open it again");
  } catch (...) {
    return std::current_exception();
  }
}

void WeightFile::expect_range(int64_t offset_bytes, int64_t size_bytes) const {
  const int64_t file_bytes = header_.file_bytes;
  MEMSYS_EXPECT(
      offset_bytes >= 0 && size_bytes >= 0 && offset_bytes <= file_bytes && size_bytes <= file_bytes - offset_bytes,
      InputError,
      "'" + header_.path + "': " + std::to_string(size_bytes) + " bytes at offset " + std::to_string(offset_bytes) +
          " are not all in its " + std::to_string(file_bytes) + "; ask for a range of one of its tensors");
}

// "'model.safetensors', tensor 'a', byte 4096"
std::string WeightFile::place_of(int64_t offset_bytes) const {
  const auto& tensors = header_.tensors;
  const auto after = std::upper_bound(tensors.begin(), tensors.end(), offset_bytes,
                                      [](int64_t at, const TensorEntry& one) { return at < one.offset_bytes; });
  const std::string tensor = after == tensors.begin() ? "" : ", tensor '" + std::prev(after)->name + "'";
  return "'" + header_.path + "'" + tensor + ", byte " + std::to_string(offset_bytes);
}

// Errors of the system know the file and the offset; the tensor is for people.
std::exception_ptr WeightFile::with_place(std::exception_ptr error, int64_t offset_bytes) const {
  try {
    std::rethrow_exception(error);
  } catch (const SpillError& told) {
    return std::make_exception_ptr(SpillError(told.errno_value(), place_of(offset_bytes) + ": " + told.what()));
  } catch (const CorruptionError& told) {
    return std::make_exception_ptr(CorruptionError(place_of(offset_bytes) + ": " + told.what()));
  } catch (...) {
    return error;
  }
}

void WeightFile::read(int64_t offset_bytes, int64_t size_bytes, void* target) {
  expect_range(offset_bytes, size_bytes);
  if (size_bytes == 0) return;
  const ByteSpan wanted{offset_bytes, offset_bytes + size_bytes};
  const auto ranges = checks_.ranges_in(wanted);
  ByteSpan whole = wanted;  // with the units that lie across its ends, and the rest of the last page
  const ByteSpan first = unit_at(ranges, wanted.begin_bytes), last = unit_at(ranges, wanted.end_bytes - 1);
  if (first.size_bytes() > 0) whole.begin_bytes = first.begin_bytes;
  if (last.size_bytes() > 0) whole.end_bytes = last.end_bytes;
  whole.end_bytes = std::min(pages_around(whole).end_bytes, header_.file_bytes);
  const auto pieces = cut_pieces(whole, ranges, kBounceBytes);
  int64_t bounce_bytes = 0;
  for (const ByteSpan& piece : pieces)
    bounce_bytes = std::max(bounce_bytes, room_bytes(piece.begin_bytes, piece.size_bytes()));
  const Buffer bounce(runtime_->with_faults(make_mmap_resource()), bounce_bytes);
  Executor& executor = *runtime_->executor;
  for (const ByteSpan& piece : pieces) {
    const auto ticket = std::make_shared<Ticket>();
    start_read(piece.begin_bytes, piece.size_bytes(), bounce.data(), [ticket, &executor](std::exception_ptr error) {
      ticket->finish(std::move(error));
      executor.notify();
    });
    const auto foreign = outlast(executor, [&] { return ticket->is_done(); });
    if (ticket->error() != nullptr) std::rethrow_exception(ticket->error());
    if (foreign != nullptr) std::rethrow_exception(foreign);
    const ByteSpan inside{std::max(piece.begin_bytes, wanted.begin_bytes), std::min(piece.end_bytes, wanted.end_bytes)};
    std::memcpy(static_cast<char*>(target) + (inside.begin_bytes - wanted.begin_bytes),
                static_cast<const char*>(bounce.data()) + phase_of(piece.begin_bytes) +
                    (inside.begin_bytes - piece.begin_bytes),
                static_cast<size_t>(inside.size_bytes()));
  }
}

}  // namespace memsys
