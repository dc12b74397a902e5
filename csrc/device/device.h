// The seam to hardware: what the engine needs of a device, and nothing more. Implementations: the host device (the
// CPU as a device), its seeded form (a simulated accelerator that checks happens-before), and CUDA.
//
// Contract, for every implementation:
//  - A StreamView borrows a stream; 0 is the default (compute) stream. On CUDA it is the cudaStream_t, torch's too.
//  - Work on one stream runs in order of issue. Work on different streams is ordered by record() and wait() alone.
//  - copy() and fill() return at once; the bytes they name stay valid until an event recorded after them completes.
//  - An event that was never recorded counts as complete. Recording again forgets the earlier record.
//  - synchronize() blocks the host until the event is complete; callers hold no lock and no GIL.
//  - Errors throw DeviceError or BudgetError, with the bytes asked for. Destroying calls never throw.
//  - Thread-safe: any thread may call anything.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/executor.h"
#include "base/fault_counter.h"

namespace memsys {

enum class DeviceKind { host, simulated, cuda };

struct StreamView {
  uintptr_t value = 0;
  bool operator==(const StreamView&) const = default;
};

// Names the host itself (file I/O, a CPU loop) in note_use() and note_free(). No work can be issued on it.
inline constexpr StreamView kHostStream{~uintptr_t{0}};

struct EventId {
  uintptr_t value = 0;
};

struct Capabilities {
  DeviceKind kind = DeviceKind::host;
  std::string name;
  // Device memory is plain host memory: files are read and written in place, without staging.
  bool host_addressable = true;
  // Pinned memory differs from pageable memory.
  bool needs_pinning = false;
};

// How a stream touches a block; the simulation checks each use against all earlier ones.
enum class Use { read, write };

class Device {
 public:
  virtual ~Device() = default;
  virtual const Capabilities& capabilities() const = 0;

  // Device memory, ordered on `stream`: a block freed on a stream is reused by later work of that stream.
  virtual void* allocate(int64_t bytes, StreamView stream) = 0;
  virtual void free(void* pointer, int64_t bytes, StreamView stream) noexcept = 0;
  // Lets copies from and to ordinary host memory run asynchronously, and kernels read it at its own address.
  // `pointer` is page-aligned.
  virtual void register_host(void* pointer, int64_t bytes) = 0;
  virtual void unregister_host(void* pointer) noexcept = 0;

  virtual StreamView create_stream(const std::string& name) = 0;
  virtual void destroy_stream(StreamView stream) noexcept = 0;
  virtual EventId create_event() = 0;
  virtual void destroy_event(EventId event) noexcept = 0;
  virtual void record(EventId event, StreamView stream) = 0;
  // Later work of `stream` starts after `event`.
  virtual void wait(StreamView stream, EventId event) = 0;
  virtual bool query(EventId event) = 0;
  virtual void synchronize(EventId event) = 0;
  // The gate of a task that starts after `event`.
  virtual Gate gate(EventId event) = 0;

  virtual void copy(void* target, const void* source, int64_t bytes, StreamView stream) = 0;
  virtual void fill(void* target, unsigned char value, int64_t bytes, StreamView stream) = 0;

  // Says that work outside memsys (a torch operation) on `stream` reads or writes these bytes. Only the simulation
  // listens: it throws OrderError if the use is not ordered after every conflicting one.
  virtual void note_use(const void* pointer, int64_t bytes, StreamView stream, Use use) = 0;
  // Says that the owner of these bytes gives them back to an allocator ordered on `stream`.
  virtual void note_free(const void* pointer, int64_t bytes, StreamView stream) = 0;
  // Says that `stream` uses a block that was allocated on another one, as torch's record_stream does: once freed, it
  // is handed out again only when `stream` has come as far as it had then. Ignores what allocate() did not give.
  virtual void note_user(const void* pointer, StreamView stream) = 0;
};

// The CPU as a device: stream 0 is synchronous, as torch's CPU operations are; created streams are queues.
std::shared_ptr<Device> make_host_device(std::shared_ptr<Executor> executor);
// A simulated accelerator over CPU memory: see simulated_device.h. `executor` should be seeded.
std::shared_ptr<Device> make_simulated_device(std::shared_ptr<Executor> executor);
// Throws DeviceError, saying why, where there is no driver or no GPU or CUDA was not built in.
std::shared_ptr<Device> make_cuda_device(int index);

// Fails the pinnings (register_host) that the counter says, with DeviceError; else as `inner`.
std::shared_ptr<Device> make_faulty_device(std::shared_ptr<Device> inner, std::shared_ptr<FaultCounter> pin_faults);

struct CudaStatus {
  bool built = false;       // compiled with CUDA
  int runtime_version = 0;  // 13000 for 13.0; 0 if not built
  int driver_version = 0;   // 0: no driver
  int device_count = 0;
  std::string message;  // one line for doctor
};
CudaStatus cuda_status();

}  // namespace memsys
