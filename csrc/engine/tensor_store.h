// Puts the bytes of saved tensors away and brings them back: the floor under activations. A block goes out to host
// memory or to a file and may come back any number of times. Two roads: direct (device memory is host memory: the
// file is written from and read into the tensor's own memory) and staged (through pinned memory, by the lanes).
// Nothing here knows torch: addresses come in, and whoever owns a source keeps it until `left` has ended.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/saved_block.h"
#include "engine/transfer_log.h"
#include "memory/arena.h"
#include "memory/byte_budget.h"

namespace memsys {

// checksum: host copies have one, and what a lane moved is read a second time and compared. Staged road; a block then
// takes host memory twice while it moves.
enum class HostCheck { off, checksum };

struct StoreOptions {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Device> device;
  std::shared_ptr<IoEngine> io;
  // Null: pinned memory of the device. Of host copies, and of restored tensors.
  std::shared_ptr<MemoryResource> host_upstream, target_upstream;
  std::string spill_folder;
  int64_t device_budget_bytes = -1;
  int64_t host_budget_bytes = -1;
  int64_t disk_budget_bytes = -1;
  DirectMode direct = DirectMode::automatic;
  HostCheck host_check = HostCheck::off;
};

struct StoreStats {
  int64_t out_bytes = 0, in_bytes = 0, out_count = 0, in_count = 0;
  int64_t file_out_bytes = 0, file_in_bytes = 0, in_flight_bytes = 0;
};

class TensorStore {
 public:
  static std::shared_ptr<TensorStore> make(const StoreOptions& options);
  ~TensorStore();

  // Starts to put [source, source + bytes) away, after everything issued so far on `producer`. Reserves the bytes
  // in the device budget while they are in flight. Throws BudgetError or SpillError with nothing changed.
  BlockRef swap_out(const void* source, int64_t bytes, StreamView producer, Tier target);
  // Lets `stream`'s allocator reuse the source at once: its later work waits for the copy. Staged path only; returns
  // whether the source may now be dropped.
  bool order_source(const BlockRef& block, StreamView stream);

  // Starts to bring a block back into `target` (allocated on `consumer`), or into memory of the store if null.
  ArrivalRef swap_in(const BlockRef& block, void* target, StreamView consumer);
  // Later work on `consumer` may read the target. Blocks the host (the GIL released) as long as it must; throws
  // the transfer's error.
  void arrive(const ArrivalRef& arrival, StreamView consumer);

  // Room in the store's memory for restored tensors, counted in the device budget while it lives. Throws BudgetError.
  std::shared_ptr<Buffer> allocate_target(int64_t bytes);

  // Sleeps until more than `seen_count` transfers have ended, or have let go of their memory, or the time is up;
  // returns the count.
  int64_t wait_ended(int64_t seen_count, int64_t timeout_us);
  int64_t ended_count() const { return counts_->ended; }
  // Swap-ins that run, or whose tasks have yet to let go of their memory: the last does so just after `done`.
  int64_t arriving_count() const { return counts_->arriving; }
  void drain();

  ByteBudget& device_budget() { return *device_budget_; }
  ByteBudget& host_budget() { return *host_budget_; }
  ByteBudget& disk_budget() { return *disk_budget_; }
  Arena& target_arena() { return *target_arena_; }
  Arena& host_arena() { return *host_arena_; }
  TransferEngine& engine() { return *engine_; }
  // Records transfers and levels from start to stop: see transfer_log.h.
  void start_log(int64_t capacity);
  void stop_log();
  const TransferLog& log() const { return *log_; }
  int64_t spill_used_bytes() const { return spill_->used_bytes(); }
  StoreStats stats() const;

 private:
  struct Counts {
    std::atomic<int64_t> ended{0}, arriving{0};
  };
  struct HeldArrival;

  explicit TensorStore(const StoreOptions& options);
  bool is_direct(const SavedBlock& block) const;
  void start_direct_out(const BlockRef& block, const void* source, StreamView producer);
  void start_staged_out(const BlockRef& block, const void* source, StreamView producer);
  void after_copied_out(const BlockRef& block, const std::shared_ptr<Buffer>& again);
  std::exception_ptr compare(const Buffer& wanted, const Buffer& found, int64_t bytes, const char* what);
  void end_copy_in(const ArrivalRef& arrival, std::shared_ptr<Buffer> host);
  void store_host_copy(const BlockRef& block);
  void start_direct_in(const ArrivalRef& arrival);
  void start_staged_in(const ArrivalRef& arrival);
  void issue_copy_in(const ArrivalRef& arrival, std::shared_ptr<Buffer> host);
  void verify_then_issue(const ArrivalRef& arrival, std::shared_ptr<Buffer> host);
  void read_then_issue(const ArrivalRef& arrival);
  void fail(const ArrivalRef& arrival, std::exception_ptr error);
  void place_in_store(Arrival& arrival);
  void note_levels();
  // A transfer of the block that begins now, for log_->end().
  TransferEntry begin_entry(const SavedBlock& block, Direction direction, Tier tier, Hop hop) const;
  void end_entry(TransferEntry entry, const std::exception_ptr& error);
  // Staged path: an entry whose begin is when `ready` completes, in the order of the direction's lane.
  std::shared_ptr<TransferEntry> begin_entry_after(const EventRef& ready, const SavedBlock& block, Direction direction);
  void source_left(const BlockRef& block, std::exception_ptr error);
  void end(Ticket& ticket, std::exception_ptr error);

  const std::shared_ptr<TransferEngine> engine_;
  const std::shared_ptr<TransferLog> log_;
  const std::shared_ptr<ByteBudget> device_budget_, host_budget_, disk_budget_;
  const std::shared_ptr<SpillSpace> spill_;
  std::shared_ptr<Arena> host_arena_, target_arena_;
  const HostCheck host_check_;
  Tier host_tier_ = Tier::pageable;
  const std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();
  std::atomic<int64_t> in_flight_bytes_{0}, next_block_id_{0};
  std::atomic<int64_t> out_bytes_{0}, in_bytes_{0}, out_count_{0}, in_count_{0}, file_out_bytes_{0}, file_in_bytes_{0};
};

}  // namespace memsys
