// What the engine's tests share: a store over a fresh runtime, and a tensor's life as the torch side leads it (the
// producer's note, swap out, order or hold the source, swap in, arrive, the consumer's note).
#pragma once

#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "csrc/io/fixture.h"
#include "engine/runtime.h"
#include "engine/tensor_store.h"

// Sanitizers make every step ten times slower: there, a tenth of the schedules is tried.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr uint64_t kScheduleShare = 10;
#else
inline constexpr uint64_t kScheduleShare = 1;
#endif
constexpr uint64_t schedules(uint64_t count) { return count / kScheduleShare > 2 ? count / kScheduleShare : 2; }

namespace engine_test {

using namespace memsys;
using io_test::Block;
using io_test::Folder;
using io_test::is_same;

struct RigOptions {
  DeviceKind kind = DeviceKind::host;
  std::optional<uint64_t> seed = {};
  FaultSeam faults = FaultSeam::none;
  HostCheck host_check = HostCheck::off;
  DirectMode direct = DirectMode::automatic;
  IoEngineChoice io = IoEngineChoice::automatic;
  int64_t device_budget_bytes = -1, host_budget_bytes = -1, disk_budget_bytes = -1;
};

class Rig {
 public:
  explicit Rig(const RigOptions& options = {})
      : runtime(make_runtime({.kind = options.kind,
                              .device_index = 0,
                              .seed = options.seed,
                              .io = {.choice = options.io},
                              .faults = options.faults})) {
    open(options, runtime->device);
  }
  // A store over another device, which usually wraps the runtime's.
  void open(const RigOptions& options, const std::shared_ptr<Device>& device) {
    store = TensorStore::make({.executor = runtime->executor,
                               .device = device,
                               .io = runtime->io,
                               .host_upstream = runtime->faulty_memory,
                               .target_upstream = nullptr,
                               .spill_folder = folder.path(),
                               .device_budget_bytes = options.device_budget_bytes,
                               .host_budget_bytes = options.host_budget_bytes,
                               .disk_budget_bytes = options.disk_budget_bytes,
                               .direct = options.direct,
                               .host_check = options.host_check});
  }
  void wait(const Ticket& ticket) const {
    runtime->executor->wait_until([&] { return ticket.is_done(); });
  }

  Folder folder;
  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<TensorStore> store;
};

// A block of the device's own memory, given back on stream 0.
class DeviceBlock {
 public:
  DeviceBlock(std::shared_ptr<Device> device, int64_t bytes)
      : device_(std::move(device)), bytes_(bytes), pointer_(device_->allocate(bytes, {})) {}
  ~DeviceBlock() { device_->free(pointer_, bytes_, {}); }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  void* data() const { return pointer_; }

 private:
  std::shared_ptr<Device> device_;
  int64_t bytes_;
  void* pointer_;
};

// A tensor's bytes, which differ at every offset and for every seed.
inline Block pattern(int64_t bytes, uint64_t seed, int64_t shift = 0) {
  Block block(bytes, shift);
  block.fill(bytes, seed);
  return block;
}

inline bool holds(const void* found, const Block& wanted, int64_t bytes) {
  return std::memcmp(found, wanted.data(), static_cast<size_t>(bytes)) == 0;
}

// A CPU tensor out and in again through the store's own memory; the source is spoilt in between.
inline void round_trip(Rig& rig, int64_t bytes, int64_t shift, Tier tier) {
  const auto salt = static_cast<uint64_t>(bytes * 31 + shift);
  const Block wanted = pattern(bytes, salt), source = pattern(bytes, salt, shift);
  const BlockRef block = rig.store->swap_out(source.data(), bytes, {}, tier);
  rig.wait(block->left);
  CHECK(!block->left.error());
  std::memset(source.data(), 0xDB, static_cast<size_t>(bytes));
  const ArrivalRef arrival = rig.store->swap_in(block, nullptr, {});
  rig.store->arrive(arrival, {});
  CHECK(holds(arrival->target, wanted, bytes));
  CHECK_EQUAL(reinterpret_cast<uintptr_t>(arrival->target) % SavedBlock::kPhaseBytes,
              static_cast<uintptr_t>(block->phase));
}

}  // namespace engine_test
