// See tensor_store.h. The two roads are in store_direct.cpp and store_staged.cpp.
#include "engine/tensor_store.h"

#include <utility>

#include "base/bytes.h"
#include "base/small_memory.h"
#include "memory/limited_resource.h"
#include "memory/resources.h"

namespace memsys {
namespace {

// Restored tensors reuse these slabs step after step, so that their pages are touched once.
constexpr int64_t kTargetSlabBytes = int64_t{16} << 20;

}  // namespace

// What the tasks of a swap-in hold. The last of them goes a moment after the tickets have ended, and memory that nobody
// else wants goes with it: whoever found no room until then is told. May outlive the store.
struct TensorStore::HeldArrival {
  ArrivalRef arrival;
  const std::shared_ptr<Counts> counts;
  const std::shared_ptr<Executor> executor;

  HeldArrival(ArrivalRef held, std::shared_ptr<Counts> shared_counts, std::shared_ptr<Executor> shared_executor)
      : arrival(std::move(held)), counts(std::move(shared_counts)), executor(std::move(shared_executor)) {
    ++counts->arriving;
  }
  HeldArrival(const HeldArrival&) = delete;
  HeldArrival& operator=(const HeldArrival&) = delete;
  ~HeldArrival() {
    arrival.reset();
    --counts->arriving;
    ++counts->ended;
    executor->notify();
  }
};

std::shared_ptr<TensorStore> TensorStore::make(const StoreOptions& options) {
  return std::shared_ptr<TensorStore>(new TensorStore(options));
}

TensorStore::TensorStore(const StoreOptions& options)
    : engine_(std::make_shared<TransferEngine>(options.executor, options.device, options.io)),
      log_(std::make_shared<TransferLog>(options.executor)),
      device_budget_(
          std::make_shared<ByteBudget>("device_budget", options.device_budget_bytes, level_watch(log_, Tier::device))),
      host_budget_(
          std::make_shared<ByteBudget>("host_budget", options.host_budget_bytes, level_watch(log_, Tier::pinned))),
      disk_budget_(
          std::make_shared<ByteBudget>("disk_budget", options.disk_budget_bytes, level_watch(log_, Tier::file))),
      spill_(std::make_shared<SpillSpace>(options.spill_folder, disk_budget_, options.direct)),
      host_check_(options.host_check) {
  const auto pinned = make_pinned_resource(options.device);
  const auto host = options.host_upstream ? options.host_upstream : pinned;
  host_tier_ = host->tier();
  host_arena_ = make_arena(make_limited_resource(host, host_budget_));
  const auto target = options.target_upstream ? options.target_upstream : pinned;
  target_arena_ = make_arena(make_limited_resource(target, device_budget_), {.slab_bytes = kTargetSlabBytes});
}

// Tasks refer to the store, so none may be left that can still run. A failure that the executor kept ends a seeded
// drain() early, so it is called again while there is something to run.
TensorStore::~TensorStore() {
  do {
    try {
      drain();
      return;
    } catch (
        ...) {  // whoever waited for the failed transfer has seen its error; a forked child has nothing to wait for
    }
  } while (engine_->executor().step(1) > 0);
}

void TensorStore::drain() { engine_->executor().drain(); }

bool TensorStore::is_direct(const SavedBlock& block) const {
  return block.target_tier == Tier::file && engine_->device().capabilities().host_addressable;
}

BlockRef TensorStore::swap_out(const void* source, int64_t bytes, StreamView producer, Tier target) {
  MEMSYS_EXPECT(bytes > 0, InputError, "swap_out: wanted at least 1 byte, found " + std::to_string(bytes));
  auto block = make_small<SavedBlock>();
  block->id = next_block_id_++;
  block->bytes = bytes;
  block->target_tier = target;
  block->phase = static_cast<int64_t>(reinterpret_cast<uintptr_t>(source) % SavedBlock::kPhaseBytes);
  if (!device_budget_->try_reserve(bytes)) {
    target_arena_->trim();  // idle slabs of restored tensors are no reason to refuse
    device_budget_->reserve(bytes);
  }
  in_flight_bytes_ += bytes;
  try {
    is_direct(*block) ? start_direct_out(block, source, producer) : start_staged_out(block, source, producer);
  } catch (...) {
    device_budget_->release(bytes);
    in_flight_bytes_ -= bytes;
    throw;
  }
  out_bytes_ += bytes;
  ++out_count_;
  if (block->file_span) file_out_bytes_ += block->file_span->file_bytes();
  return block;
}

// A source that could not leave stays reserved: its owner keeps it, and releases the bytes when it dies.
void TensorStore::source_left(const BlockRef& block, std::exception_ptr error) {
  in_flight_bytes_ -= block->bytes;
  if (!error) device_budget_->release(block->bytes);
  end(block->left, std::move(error));
}

void TensorStore::end(Ticket& ticket, std::exception_ptr error) {
  ticket.finish(std::move(error));
  ++counts_->ended;
  engine_->executor().notify();
}

ArrivalRef TensorStore::swap_in(const BlockRef& block, void* target, StreamView consumer) {
  auto arrival = make_small<Arrival>();
  arrival->block = block;
  arrival->target = target;
  if (target == nullptr) place_in_store(*arrival);
  const ArrivalRef held(make_small<HeldArrival>(arrival, counts_, engine_->file_lane().executor), arrival.get());
  is_direct(*block) ? start_direct_in(held) : [&] {
    arrival->allocated = engine_->mark(consumer);
    start_staged_in(held);
  }();
  in_bytes_ += block->bytes;
  ++in_count_;
  return arrival;
}

std::shared_ptr<Buffer> TensorStore::allocate_target(int64_t bytes) {
  return make_small<Buffer>(target_arena_, align_up(bytes, SavedBlock::kPhaseBytes));
}

void TensorStore::place_in_store(Arrival& arrival) {
  const SavedBlock& block = *arrival.block;
  arrival.owned_target = allocate_target(block.phase + block.bytes);
  arrival.owned_offset_bytes = block.phase;
  arrival.target = static_cast<unsigned char*>(arrival.owned_target->data()) + block.phase;
}

void TensorStore::arrive(const ArrivalRef& arrival, StreamView consumer) {
  arrival->issued.wait(engine_->executor());
  if (arrival->copied_in) engine_->device().wait(consumer, arrival->copied_in->id());
}

// The levels at both ends are noted, so that a record without a change has them too.
void TensorStore::start_log(int64_t capacity) {
  log_->start(capacity);
  note_levels();
}

void TensorStore::stop_log() {
  note_levels();
  log_->stop();
}

void TensorStore::note_levels() {
  log_->note_level(Tier::device, device_budget_->used_bytes());
  log_->note_level(Tier::pinned, host_budget_->used_bytes());
  log_->note_level(Tier::file, disk_budget_->used_bytes());
}

TransferEntry TensorStore::begin_entry(const SavedBlock& block, Direction direction, Tier tier, Hop hop) const {
  return {.direction = direction,
          .tier = tier,
          .hop = hop,
          .begin_us = log_->begin(),
          .bytes = block.bytes,
          .block_id = block.id};
}

void TensorStore::end_entry(TransferEntry entry, const std::exception_ptr& error) {
  if (error) entry.outcome = TransferOutcome::failed;
  log_->end(entry);
}

// The lane's stream tells only when it is done, so the begin is noted by a task of its own, in the queue of the ends.
std::shared_ptr<TransferEntry> TensorStore::begin_entry_after(const EventRef& ready, const SavedBlock& block,
                                                              Direction direction) {
  auto entry = make_small<TransferEntry>(begin_entry(block, direction, host_tier_, Hop::device));
  if (log_->is_on()) engine_->run_after(ready, direction, [this, entry] { entry->begin_us = log_->begin(); });
  return entry;
}

int64_t TensorStore::wait_ended(int64_t seen_count, int64_t timeout_us) {
  engine_->executor().wait_for([&] { return counts_->ended > seen_count; }, timeout_us);
  return counts_->ended;
}

StoreStats TensorStore::stats() const {
  return {.out_bytes = out_bytes_,
          .in_bytes = in_bytes_,
          .out_count = out_count_,
          .in_count = in_count_,
          .file_out_bytes = file_out_bytes_,
          .file_in_bytes = file_in_bytes_,
          .in_flight_bytes = in_flight_bytes_};
}

}  // namespace memsys
