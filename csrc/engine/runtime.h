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
  FaultSeam faults = FaultSeam::none;  // faulty: io and host memory may be made to fail
};

struct Runtime {
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Device> device;
  std::shared_ptr<IoEngine> io;
  QueueId check_queue = 0;  // checksums of what the readers of weights bring: one thread for all files
  std::shared_ptr<FaultyIoEngine> faulty_io;            // null unless asked for
  std::shared_ptr<FaultyMemoryResource> faulty_memory;  // null unless asked for
};

std::shared_ptr<Runtime> make_runtime(const RuntimeOptions& options);

}  // namespace memsys
