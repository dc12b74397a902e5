// The staged road: device, then pinned host memory, then perhaps a file, and back. The host copy is reused only after
// the last transfer that reads it; a failed file write leaves the block in host memory, where it is as good.
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "base/small_memory.h"
#include "engine/tensor_store.h"
#include "io/checksum.h"

namespace memsys {

void TensorStore::start_staged_out(const BlockRef& block, const void* source, StreamView producer) {
  auto host = make_small<Buffer>(host_arena_, block->bytes);
  std::shared_ptr<Buffer> again;
  if (host_check_ == HostCheck::checksum) again = make_small<Buffer>(host_arena_, block->bytes);
  if (block->target_tier == Tier::file) block->file_span = make_small<FileSpan>(spill_, block->bytes, 0);
  const auto entry = log_->is_on() ? begin_entry_after(engine_->mark(producer), *block, Direction::out) : nullptr;
  block->copied_out = again ? engine_->copy_out({host->data(), again->data()}, source, block->bytes, producer)
                            : engine_->copy_out({host->data()}, source, block->bytes, producer);
  block->set_host_copy(std::move(host));
  engine_->run_after(block->copied_out, Direction::out, [this, block, entry, again = std::move(again)] {
    if (entry) end_entry(*entry, nullptr);
    after_copied_out(block, again);
  });
}

std::exception_ptr TensorStore::compare(const Buffer& wanted, const Buffer& found, int64_t bytes, const char* what) {
  engine_->device().note_use(wanted.data(), bytes, kHostStream, Use::read);
  engine_->device().note_use(found.data(), bytes, kHostStream, Use::read);
  if (std::memcmp(wanted.data(), found.data(), static_cast<size_t>(bytes)) == 0) return nullptr;
  return std::make_exception_ptr(CorruptionError(
      std::string(what) + ", " + format_bytes(bytes) + ": two reads of the same bytes differ, checksum wanted " +
      std::to_string(crc32c(wanted.data(), bytes)) + ", found " + std::to_string(crc32c(found.data(), bytes)) +
      "; the link, its driver or the memory changed them; check the hardware, or run under a memory checker"));
}

// A source whose copy is not what it holds has not left: it is the only right one.
void TensorStore::after_copied_out(const BlockRef& block, const std::shared_ptr<Buffer>& again) {
  if (again) {
    const auto error = compare(*block->host_copy(), *again, block->bytes, "copy out of a saved tensor");
    if (error) {
      source_left(block, error);
      return end(block->stored, error);
    }
  }
  source_left(block, nullptr);
  if (!block->file_span && host_check_ == HostCheck::off) return end(block->stored, nullptr);
  try {
    engine_->executor().post(engine_->file_lane().write_queue, [this, block] { store_host_copy(block); });
  } catch (...) {
    end(block->stored, nullptr);
    throw;
  }
}

// What goes wrong before the file is asked is no fault of the disk: the block stays in host memory, and the executor
// tells the next that waits.
void TensorStore::store_host_copy(const BlockRef& block) {
  const auto host = block->host_copy();
  try {
    engine_->device().note_use(host->data(), block->bytes, kHostStream, Use::read);
    if (host_check_ == HostCheck::checksum) {
      block->checksum = crc32c(host->data(), block->bytes);
      block->has_checksum = true;
    }
    if (!block->file_span) return end(block->stored, nullptr);
    const TransferEntry entry = begin_entry(*block, Direction::out, Tier::file, Hop::below);
    block->file_span->write(host->data(), engine_->file_lane(), [this, block, host, entry](std::exception_ptr error) {
      end_entry(entry, error);
      if (!error) block->set_host_copy(nullptr);
      end(block->stored, nullptr);
    });
  } catch (...) {
    end(block->stored, nullptr);
    throw;
  }
}

bool TensorStore::order_source(const BlockRef& block, StreamView stream) {
  if (!block->copied_out) return block->left.is_done();
  engine_->device().wait(stream, block->copied_out->id());
  return true;
}

void TensorStore::start_staged_in(const ArrivalRef& arrival) {
  const BlockRef& block = arrival->block;
  auto host = block->host_copy();
  if (host_check_ == HostCheck::checksum) arrival->read_back = make_small<Buffer>(host_arena_, block->bytes);
  if (host && host_check_ == HostCheck::off) return issue_copy_in(arrival, std::move(host));
  if (host) return verify_then_issue(arrival, std::move(host));
  read_then_issue(arrival);
}

// Runs in tasks too, so what goes wrong ends the arrival instead of being thrown.
void TensorStore::issue_copy_in(const ArrivalRef& arrival, std::shared_ptr<Buffer> host) {
  try {
    const auto entry = log_->is_on() ? begin_entry_after(arrival->allocated, *arrival->block, Direction::in) : nullptr;
    arrival->copied_in = engine_->copy_in(arrival->target, host->data(), arrival->block->bytes, arrival->allocated,
                                          arrival->block->copied_out);
    const bool is_checked = arrival->read_back != nullptr;
    if (is_checked)
      arrival->copied_in = engine_->read_back(arrival->read_back->data(), arrival->target, arrival->block->bytes);
    // The event's task holds the host copy: it is reused only once nothing reads it.
    engine_->run_after(arrival->copied_in, Direction::in, [this, arrival, entry, host = std::move(host)]() mutable {
      if (entry) end_entry(*entry, nullptr);
      end_copy_in(arrival, std::move(host));
    });
    if (!is_checked) end(arrival->issued, nullptr);
  } catch (...) {
    fail(arrival, std::current_exception());
  }
}

void TensorStore::end_copy_in(const ArrivalRef& arrival, std::shared_ptr<Buffer> host) {
  std::exception_ptr error;
  const bool is_checked = arrival->read_back != nullptr;
  if (is_checked) {
    error = compare(*host, *arrival->read_back, arrival->block->bytes, "copy in of a saved tensor");
    arrival->read_back.reset();
  }
  host.reset();
  if (is_checked) end(arrival->issued, error);  // else whoever issued the copy ends it, maybe at this moment
  end(arrival->done, error);
}

void TensorStore::fail(const ArrivalRef& arrival, std::exception_ptr error) {
  end(arrival->issued, error);
  end(arrival->done, error);
}

void TensorStore::verify_then_issue(const ArrivalRef& arrival, std::shared_ptr<Buffer> host) {
  const BlockRef& block = arrival->block;
  const auto verify = [this, arrival, host = std::move(host)] {
    const SavedBlock& saved = *arrival->block;
    if (saved.stored.error()) return fail(arrival, saved.stored.error());
    const uint32_t found = crc32c(host->data(), saved.bytes);
    // No checksum: its making failed, which the executor has told.
    if (!saved.has_checksum || found == saved.checksum) return issue_copy_in(arrival, host);
    fail(arrival, std::make_exception_ptr(CorruptionError(
                      "host copy of a saved tensor, " + format_bytes(saved.bytes) + ": checksum wanted " +
                      std::to_string(saved.checksum) + ", found " + std::to_string(found) +
                      "; something wrote to this memory; run once more under a memory checker")));
  };
  engine_->executor().post(engine_->file_lane().read_queue, verify,
                           {.ready = [block] { return block->stored.is_done(); }, .block = {}});
}

void TensorStore::read_then_issue(const ArrivalRef& arrival) {
  auto staging = make_small<Buffer>(host_arena_, arrival->block->bytes);
  file_in_bytes_ += arrival->block->file_span->file_bytes();
  engine_->executor().post(engine_->file_lane().read_queue, [this, arrival, staging = std::move(staging)] {
    try {
      engine_->device().note_use(staging->data(), arrival->block->bytes, kHostStream, Use::write);
      const TransferEntry entry = begin_entry(*arrival->block, Direction::in, Tier::file, Hop::below);
      arrival->block->file_span->read(staging->data(), engine_->file_lane(),
                                      [this, arrival, staging, entry](std::exception_ptr error) {
                                        end_entry(entry, error);
                                        if (!error) return issue_copy_in(arrival, staging);
                                        fail(arrival, error);
                                      });
    } catch (...) {
      fail(arrival, std::current_exception());
    }
  });
}

}  // namespace memsys
