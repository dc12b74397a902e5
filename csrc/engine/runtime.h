// What every store of one process and device shares: the executor, the device and the io engine. In seeded mode the
// same three are a simulation: one seed, one schedule.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "device/device.h"
#include "io/faulty_io.h"
#include "memory/resources.h"

namespace memsys {

enum class FaultSeam { none, faulty };

struct RuntimeOptions {
  DeviceKind kind = DeviceKind::host;
  int device_index = 0;
  std::optional<uint64_t> seed;  // a seeded executor
  IoEngineOptions io;
  FaultSeam faults = FaultSeam::none;  // faulty: io, memory, pinning and thread starts may be made to fail
};

struct Runtime {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Device> device;
  std::shared_ptr<IoEngine> io;
  QueueId check_queue = 0;  // checksums of what the readers of weights bring: one thread for all files
  // Null unless faults were asked for.
  std::shared_ptr<FaultyIoEngine> faulty_io;
  std::shared_ptr<FaultyMemoryResource> faulty_memory;  // pinned
  std::shared_ptr<FaultCounter> memory_faults, pin_faults, start_faults;

  // The resource, with the runtime's faults of memory where they were asked for: all bytes that stores and tables take
  // come through here.
  std::shared_ptr<MemoryResource> with_faults(std::shared_ptr<MemoryResource> resource) const;
};

std::shared_ptr<Runtime> make_runtime(const RuntimeOptions& options);

}  // namespace memsys
