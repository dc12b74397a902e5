// Every device that this machine can have, each fresh, with the executor behind it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/executor.h"
#include "csrc/check.h"
#include "device/device.h"

namespace devices {

struct Bench {
  std::string name;
  std::shared_ptr<memsys::Executor> executor;
  std::shared_ptr<memsys::Device> device;
};
using Body = std::function<void(Bench&)>;

inline void run(const std::string& name, const std::shared_ptr<memsys::Executor>& executor,
                const std::shared_ptr<memsys::Device>& device, const Body& body) {
  Bench bench{name, executor, device};
  try {
    body(bench);
  } catch (const check::Skip&) {
    throw;
  } catch (const std::exception& error) {
    throw check::Failure("on " + name + ": " + error.what());
  }
}

// The devices without hardware: the CPU with threads and seeded, and the simulation with both.
inline void on_host_devices(const Body& body) {
  const auto threaded = memsys::make_threaded_executor();
  run("host, threaded", threaded, memsys::make_host_device(threaded), body);
  run("simulated, threaded", threaded, memsys::make_simulated_device(threaded), body);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto for_host = memsys::make_seeded_executor(seed), for_simulated = memsys::make_seeded_executor(seed);
    run("host, seed " + std::to_string(seed), for_host, memsys::make_host_device(for_host), body);
    run("simulated, seed " + std::to_string(seed), for_simulated, memsys::make_simulated_device(for_simulated), body);
  }
}

inline void on_cuda(const Body& body) {
  const memsys::CudaStatus status = memsys::cuda_status();
  if (status.device_count == 0) SKIP(status.message);
  const auto executor = memsys::make_threaded_executor();
  run("cuda", executor, memsys::make_cuda_device(0), body);
}

}  // namespace devices

// Two tests of one body, so that a missing GPU shows as a skip of its own.
#define DEVICE_TEST(name)                                 \
  static void body_##name(devices::Bench& bench);         \
  TEST(name) { devices::on_host_devices(body_##name); }   \
  TEST(name##_on_cuda) { devices::on_cuda(body_##name); } \
  static void body_##name(devices::Bench& bench)
