// See runtime.h.
#include "engine/runtime.h"

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

std::shared_ptr<Runtime> make_runtime(const RuntimeOptions& options) {
  auto runtime = std::make_shared<Runtime>();
  runtime->executor = options.seed ? make_seeded_executor(*options.seed) : make_threaded_executor();
  runtime->device = make_device(options, runtime->executor);
  runtime->io = make_io_engine(runtime->executor, options.io);
  runtime->check_queue = runtime->executor->create_queue("memsys-check");
  if (options.faults == FaultSeam::faulty) {
    runtime->faulty_io = make_faulty_io_engine(runtime->io);
    runtime->io = runtime->faulty_io;
    runtime->faulty_memory = make_faulty_resource(make_pinned_resource(runtime->device));
  }
  return runtime;
}

}  // namespace memsys
