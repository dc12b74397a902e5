// See arena.h. Each slab is one allocation of the upstream with an OffsetAllocator over it. A block comes from the
// fullest slab that has room, so that other slabs run empty and can be given back; a freed block is parked first, and
// handed out again to the next request of its very size, because it is still warm in the caches.
//
// No lock is held while the upstream allocates or frees, which takes milliseconds: bytes under way are claimed from
// the budget first (pending_bytes_), then the upstream is called, then the slab is published.
#include "memory/arena.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/small_memory.h"
#include "memory/pages.h"
#include "plan/offset_allocator.h"

namespace memsys {
namespace {

enum class SlabSize { usual, exact };

struct Slab {
  Slab(int64_t slab_bytes, int64_t alignment) : bytes(slab_bytes), blocks(slab_bytes, alignment) {}
  int64_t free_bytes() const { return bytes - blocks.used_bytes(); }
  int64_t bytes;
  OffsetAllocator blocks;  // live and parked ones
};

class SlabArena final : public Arena {
 public:
  SlabArena(std::shared_ptr<MemoryResource> upstream, const ArenaOptions& options)
      : upstream_(std::move(upstream)),
        alignment_(options.alignment),
        slab_unit_(std::max(options.alignment, page_bytes())),
        slab_bytes_(align_up(options.slab_bytes, slab_unit_)),
        budget_bytes_(options.budget_bytes),
        owner_pid_(getpid()) {}
  ~SlabArena() override {
    for (const auto& [base, slab] : slabs_) upstream_->deallocate(reinterpret_cast<void*>(base), slab.bytes);
  }

  void* allocate(int64_t bytes) override;
  void* try_allocate(int64_t bytes) override;
  void deallocate(void* pointer, int64_t bytes) noexcept override;
  Tier tier() const override { return upstream_->tier(); }
  int64_t trim(int64_t keep_bytes) override;
  void set_budget(int64_t budget_bytes) override;
  ArenaStats stats() const override;
  void check_invariants() const override;

 private:
  using Lock = std::unique_lock<std::mutex>;

  // All of these are called with the lock held; those that take it let go of it around calls of the upstream.
  uintptr_t take(int64_t rounded_bytes);
  uintptr_t take_or_grow(Lock& lock, int64_t rounded_bytes, SlabSize size, std::exception_ptr* refusal);
  bool grow(Lock& lock, int64_t rounded_bytes, SlabSize size, std::exception_ptr* refusal);
  int64_t release_free_slabs(Lock& lock, int64_t keep_bytes);
  void* hand_out(uintptr_t block, int64_t bytes);
  void forget(uintptr_t block, int64_t bytes);
  void unpark();
  uintptr_t slab_of(uintptr_t block) const { return std::prev(slabs_.upper_bound(block))->first; }
  int64_t new_slab_bytes(int64_t rounded_bytes, SlabSize size) const;
  int64_t room_bytes() const;
  void settle(int64_t pending_bytes);
  int64_t round(int64_t bytes) const;
  std::string describe_refusal(int64_t bytes) const;

  const std::shared_ptr<MemoryResource> upstream_;
  const int64_t alignment_, slab_unit_, slab_bytes_;
  mutable std::mutex mutex_;
  int64_t budget_bytes_;
  const pid_t owner_pid_;
  int64_t reserved_bytes_ = 0, peak_reserved_bytes_ = 0, used_bytes_ = 0, peak_used_bytes_ = 0;
  int64_t taken_count_ = 0;
  int64_t pending_bytes_ = 0;          // on their way from or to the upstream
  std::atomic<uint32_t> settled_ = 0;  // counts finished calls of the upstream, to wait for another thread's
  SmallMap<uintptr_t, Slab> slabs_;    // by address
  SmallSet<std::pair<int64_t, uintptr_t>> slabs_by_free_;  // (free bytes, address): the fullest come first
  SmallMap<uintptr_t, int64_t> live_;                      // block -> bytes as asked for
  SmallMap<int64_t, SmallVector<uintptr_t>> parked_;       // rounded bytes -> blocks, last freed last
};

int64_t SlabArena::round(int64_t bytes) const {
  MEMSYS_EXPECT(
      bytes > 0, InputError,
      std::string(tier_name(tier())) + " arena: asked for " + std::to_string(bytes) + " bytes; ask for at least one");
  checked_add(bytes, slab_unit_);
  return align_up(bytes, alignment_);
}

int64_t SlabArena::room_bytes() const {
  if (budget_bytes_ < 0) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(0, budget_bytes_ - reserved_bytes_ - pending_bytes_);
}

// 0: the budget has no room. A usual slab holds a whole number of the blocks that caused it, so that a run of equal
// blocks, which is what a model's layers ask for, leaves no rest at its end. Slabs are whole pages, as the upstream
// takes them, so that the budget counts what is really used.
int64_t SlabArena::new_slab_bytes(int64_t rounded_bytes, SlabSize size) const {
  const int64_t room = align_down(room_bytes(), slab_unit_);
  const int64_t least = align_up(rounded_bytes, slab_unit_);
  if (least > room) return 0;
  if (size == SlabSize::exact || least >= slab_bytes_) return least;
  return align_up(std::min(slab_bytes_, room) / rounded_bytes * rounded_bytes, slab_unit_);
}

uintptr_t SlabArena::take(int64_t rounded_bytes) {
  const auto parked = parked_.find(rounded_bytes);
  if (parked != parked_.end() && !parked->second.empty()) {
    const uintptr_t block = parked->second.back();
    parked->second.pop_back();
    return block;
  }
  unpark();
  for (auto entry = slabs_by_free_.lower_bound({rounded_bytes, 0}); entry != slabs_by_free_.end(); ++entry) {
    const uintptr_t base = entry->second;
    Slab& slab = slabs_.at(base);
    if (slab.blocks.largest_free_bytes() < rounded_bytes) continue;
    slabs_by_free_.erase(entry);
    const int64_t offset = slab.blocks.allocate(rounded_bytes);
    slabs_by_free_.emplace(slab.free_bytes(), base);
    return base + static_cast<uintptr_t>(offset);
  }
  return 0;
}

void SlabArena::unpark() {
  for (auto& [rounded_bytes, blocks] : parked_) {
    for (const uintptr_t block : blocks) {
      const uintptr_t base = slab_of(block);
      Slab& slab = slabs_.at(base);
      slabs_by_free_.erase({slab.free_bytes(), base});
      slab.blocks.free(static_cast<int64_t>(block - base));
      slabs_by_free_.emplace(slab.free_bytes(), base);
    }
  }
  parked_.clear();
}

// Marks a call of the upstream as finished: its bytes are no longer under way.
void SlabArena::settle(int64_t pending_bytes) {
  pending_bytes_ -= pending_bytes;
  settled_.fetch_add(1);
  settled_.notify_all();
}

bool SlabArena::grow(Lock& lock, int64_t rounded_bytes, SlabSize size, std::exception_ptr* refusal) {
  const int64_t bytes = new_slab_bytes(rounded_bytes, size);
  if (bytes == 0) return false;
  pending_bytes_ += bytes;
  lock.unlock();
  void* pointer = nullptr;
  try {
    pointer = upstream_->allocate(bytes);
  } catch (const BudgetError&) {
    *refusal = std::current_exception();
  } catch (...) {
    lock.lock();
    settle(bytes);
    throw;
  }
  lock.lock();
  if (pointer != nullptr) {
    const auto base = reinterpret_cast<uintptr_t>(pointer);
    slabs_.try_emplace(base, bytes, alignment_);
    slabs_by_free_.emplace(bytes, base);
    peak_reserved_bytes_ = std::max(peak_reserved_bytes_, reserved_bytes_ + pending_bytes_);
    reserved_bytes_ += bytes;
    ++taken_count_;
  }
  settle(bytes);
  return pointer != nullptr;
}

uintptr_t SlabArena::take_or_grow(Lock& lock, int64_t rounded_bytes, SlabSize size, std::exception_ptr* refusal) {
  const uintptr_t block = take(rounded_bytes);
  if (block != 0) return block;
  const bool has_grown = grow(lock, rounded_bytes, size, refusal);
  // Even a refused call of the upstream let other threads in: one may have brought what is wanted.
  return has_grown || *refusal != nullptr ? take(rounded_bytes) : 0;
}

void* SlabArena::hand_out(uintptr_t block, int64_t bytes) {
  live_.emplace(block, bytes);
  used_bytes_ += bytes;
  peak_used_bytes_ = std::max(peak_used_bytes_, used_bytes_);
  return reinterpret_cast<void*>(block);
}

void* SlabArena::allocate(int64_t bytes) {
  const int64_t rounded_bytes = round(bytes);
  Lock lock(mutex_);
  bool has_flushed = false;
  for (SlabSize size = SlabSize::usual;;) {
    std::exception_ptr refusal;
    const uintptr_t block = take_or_grow(lock, rounded_bytes, size, &refusal);
    if (block != 0) return hand_out(block, bytes);
    if (!has_flushed) {
      has_flushed = true;
      if (refusal != nullptr) size = SlabSize::exact;  // the upstream may have room for the block, if not for a slab
      const bool fits_budget = budget_bytes_ >= rounded_bytes;
      release_free_slabs(lock, refusal == nullptr && fits_budget ? budget_bytes_ - rounded_bytes : 0);
      continue;
    }
    if (refusal != nullptr) std::rethrow_exception(refusal);
    // Another thread's call of the upstream is under way: what it brings or gives back may be enough. On a seeded
    // executor there is no other thread, so this never waits there.
    if (pending_bytes_ > 0) {
      const uint32_t seen = settled_.load();
      lock.unlock();
      settled_.wait(seen);
      lock.lock();
      has_flushed = false;
      continue;
    }
    throw BudgetError(describe_refusal(bytes));
  }
}

void* SlabArena::try_allocate(int64_t bytes) {
  const int64_t rounded_bytes = round(bytes);
  Lock lock(mutex_);
  std::exception_ptr refusal;
  const uintptr_t block = take_or_grow(lock, rounded_bytes, SlabSize::usual, &refusal);
  return block == 0 ? nullptr : hand_out(block, bytes);
}

// Thrown inside deallocate(), so it ends the process, as free() does: after a double free no answer can be trusted.
void SlabArena::forget(uintptr_t block, int64_t bytes) {
  const auto found = live_.find(block);
  MEMSYS_EXPECT(found != live_.end() && found->second == bytes, InputError,
                std::string(tier_name(tier())) + " arena: freed a block of " + std::to_string(bytes) +
                    " bytes that is not live, or was handed out with another size");
  live_.erase(found);
}

void SlabArena::deallocate(void* pointer, int64_t bytes) noexcept {
  if (pointer == nullptr) return;
  Lock lock(mutex_, std::defer_lock);
  if (getpid() == owner_pid_) {
    lock.lock();
  } else if (!lock.try_lock()) {
    return;  // fork() caught another thread at it: no one will ever unlock it in this child
  }
  forget(reinterpret_cast<uintptr_t>(pointer), bytes);
  used_bytes_ -= bytes;
  parked_[align_up(bytes, alignment_)].push_back(reinterpret_cast<uintptr_t>(pointer));
  if (budget_bytes_ >= 0 && reserved_bytes_ > budget_bytes_) release_free_slabs(lock, budget_bytes_);
}

int64_t SlabArena::release_free_slabs(Lock& lock, int64_t keep_bytes) {
  unpark();
  std::vector<std::pair<void*, int64_t>> released;
  int64_t released_bytes = 0;
  for (auto slab = slabs_.begin(); slab != slabs_.end() && reserved_bytes_ > keep_bytes;) {
    if (slab->second.blocks.live_count() > 0) {
      ++slab;
      continue;
    }
    const int64_t bytes = slab->second.bytes;
    released.emplace_back(reinterpret_cast<void*>(slab->first), bytes);
    released_bytes += bytes;
    slabs_by_free_.erase({bytes, slab->first});
    slab = slabs_.erase(slab);
    reserved_bytes_ -= bytes;
    pending_bytes_ += bytes;
  }
  if (released.empty()) return 0;
  lock.unlock();
  for (const auto& [pointer, bytes] : released) upstream_->deallocate(pointer, bytes);
  lock.lock();
  settle(released_bytes);
  return released_bytes;
}

int64_t SlabArena::trim(int64_t keep_bytes) {
  Lock lock(mutex_);
  return release_free_slabs(lock, keep_bytes);
}

void SlabArena::set_budget(int64_t budget_bytes) {
  Lock lock(mutex_);
  budget_bytes_ = budget_bytes;
  if (budget_bytes >= 0) release_free_slabs(lock, budget_bytes);
}

std::string SlabArena::describe_refusal(int64_t bytes) const {
  int64_t largest_bytes = 0;
  for (const auto& [base, slab] : slabs_) largest_bytes = std::max(largest_bytes, slab.blocks.largest_free_bytes());
  return std::string(tier_name(tier())) + " memory: wanted " + format_bytes(bytes) + ", but of the budget of " +
         format_bytes(budget_bytes_) + " blocks hold " + format_bytes(used_bytes_) + ", slabs hold " +
         format_bytes(reserved_bytes_) + " and the largest free piece has " + format_bytes(largest_bytes) +
         "; raise the budget of this memory or keep fewer bytes in it";
}

ArenaStats SlabArena::stats() const {
  const Lock lock(mutex_);
  ArenaStats stats;
  stats.reserved_bytes = reserved_bytes_;
  stats.peak_reserved_bytes = peak_reserved_bytes_;
  stats.used_bytes = used_bytes_;
  stats.peak_used_bytes = peak_used_bytes_;
  stats.block_count = static_cast<int64_t>(live_.size());
  stats.slab_count = static_cast<int64_t>(slabs_.size());
  stats.taken_count = taken_count_;
  return stats;
}

void SlabArena::check_invariants() const {
  const Lock lock(mutex_);
  const auto expect = [this](bool holds, const char* what) {
    MEMSYS_EXPECT(holds, Error, std::string(tier_name(tier())) + " arena: broken invariant: " + what);
  };
  int64_t reserved = 0, held = 0, asked = 0, rounded = 0, end = 0;
  for (const auto& [base, slab] : slabs_) {
    slab.blocks.check_invariants();
    expect(static_cast<int64_t>(base) >= end, "slabs overlap");
    expect(slabs_by_free_.count({slab.free_bytes(), base}) == 1, "a slab is missing from the index by free bytes");
    end = static_cast<int64_t>(base) + slab.bytes;
    reserved += slab.bytes;
    held += slab.blocks.used_bytes();
  }
  const auto expect_held = [&](uintptr_t block, int64_t rounded_bytes) {
    const uintptr_t base = slab_of(block);
    expect(slabs_.at(base).blocks.size_of(static_cast<int64_t>(block - base)) == rounded_bytes, "a block changed size");
    rounded += rounded_bytes;
  };
  for (const auto& [block, bytes] : live_) {
    expect_held(block, align_up(bytes, alignment_));
    asked += bytes;
  }
  for (const auto& [rounded_bytes, blocks] : parked_)
    for (const uintptr_t block : blocks) expect_held(block, rounded_bytes);
  expect(slabs_by_free_.size() == slabs_.size(), "the slab indexes differ in length");
  expect(reserved == reserved_bytes_, "reserved bytes are miscounted");
  expect(asked == used_bytes_, "used bytes are miscounted");
  expect(rounded == held, "a block is lost, or held twice");
  expect(pending_bytes_ >= 0, "bytes under way are negative");
}

}  // namespace

std::shared_ptr<Arena> make_arena(std::shared_ptr<MemoryResource> upstream, ArenaOptions options) {
  MEMSYS_EXPECT(upstream != nullptr, InputError, "arena: no upstream given");
  MEMSYS_EXPECT(options.alignment > 0 && (options.alignment & (options.alignment - 1)) == 0, InputError,
                "arena: alignment " + std::to_string(options.alignment) + " is not a power of two");
  MEMSYS_EXPECT(options.slab_bytes > 0, InputError,
                "arena: slab_bytes is " + std::to_string(options.slab_bytes) + "; give at least one page");
  return std::make_shared<SlabArena>(std::move(upstream), options);
}

}  // namespace memsys
