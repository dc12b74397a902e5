// The bytes of one storage span that left the device: where they are, and what must have happened before they may
// be read back or their source reused. Shared by everything that still needs it; the last holder frees its place.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "engine/file_span.h"
#include "engine/ticket.h"
#include "engine/transfer_engine.h"
#include "memory/buffer.h"

namespace memsys {

struct SavedBlock {
  int64_t id = 0;  // counts the store's blocks
  int64_t bytes = 0;
  int64_t phase = 0;  // the source's address modulo kPhaseBytes: restored targets keep it
  Tier target_tier = Tier::pageable;
  EventRef copied_out;                  // staged path: set before the block is shared
  std::shared_ptr<FileSpan> file_span;  // set before the block is shared, if the block goes to a file

  // Ends when the source may be dropped; its error means that the source is now the only copy.
  Ticket left;
  // Ends when nothing more will be written on the block's behalf.
  Ticket stored;

  // The host copy, while there is one. Readers take a reference, so that it outlives their transfer.
  std::shared_ptr<Buffer> host_copy() const {
    const std::lock_guard lock(mutex);
    return host;
  }
  void set_host_copy(std::shared_ptr<Buffer> buffer) {
    const std::lock_guard lock(mutex);
    host.swap(buffer);
  }

  uint32_t checksum = 0;  // of the host copy; valid if has_checksum, set before `stored` ends
  bool has_checksum = false;

  static constexpr int64_t kPhaseBytes = 4096;

 private:
  mutable std::mutex mutex;  // guards host
  std::shared_ptr<Buffer> host;
};

using BlockRef = std::shared_ptr<SavedBlock>;

// A swap-in under way.
struct Arrival {
  BlockRef block;
  void* target = nullptr;
  std::shared_ptr<Buffer> owned_target;  // the store's own memory, if the caller brought none
  int64_t owned_offset_bytes = 0;        // where the bytes start in it
  EventRef allocated;                    // the target's stream at its allocation
  EventRef copied_in;                    // staged path: valid once `issued`
  std::shared_ptr<Buffer> read_back;     // staged path, if checked: what the target holds, to be compared
  Ticket issued;  // the copy is on its lane (staged), or the bytes are there (direct, or checked)
  Ticket done;    // the bytes are in the target, verified
};

using ArrivalRef = std::shared_ptr<Arrival>;

}  // namespace memsys
