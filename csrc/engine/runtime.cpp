// See runtime.h.
#include "engine/runtime.h"

#include <utility>

#include "base/error.h"

namespace memsys {
namespace {

std::shared_ptr<Device> make_device(const RuntimeOptions& options, const std::shared_ptr<Executor>& executor) {
  switch (options.kind) {
    case DeviceKind::host:
      return make_host_device(executor);
    case DeviceKind::simulated:
      return make_simulated_device(executor);
    case DeviceKind::cuda:
      return make_cuda_device(options.device_index);
  }
  throw InputError("unknown device kind");
}

}  // namespace

std::shared_ptr<MemoryResource> Runtime::with_faults(std::shared_ptr<MemoryResource> resource) const {
  return memory_faults == nullptr ? resource : make_faulty_resource(std::move(resource), memory_faults);
}

std::shared_ptr<Runtime> make_runtime(const RuntimeOptions& options) {
  auto runtime = std::make_shared<Runtime>();
  if (options.faults == FaultSeam::faulty)
    for (auto* faults : {&runtime->memory_faults, &runtime->pin_faults, &runtime->start_faults})
      *faults = std::make_shared<FaultCounter>();
  runtime->executor =
      options.seed ? make_seeded_executor(*options.seed) : make_threaded_executor(runtime->start_faults);
  runtime->device = make_device(options, runtime->executor);
  if (options.faults == FaultSeam::faulty) runtime->device = make_faulty_device(runtime->device, runtime->pin_faults);
  runtime->io = make_io_engine(runtime->executor, options.io);
  runtime->check_queue = runtime->executor->create_queue("memsys-check");
  if (options.faults == FaultSeam::faulty) {
    runtime->faulty_io = make_faulty_io_engine(runtime->io);
    runtime->io = runtime->faulty_io;
    runtime->faulty_memory = make_faulty_resource(make_pinned_resource(runtime->device), runtime->memory_faults);
  }
  return runtime;
}

}  // namespace memsys
