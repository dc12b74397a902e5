// The lanes: one stream out of the device, one into it, and one pair of file queues. Every edge that a transfer
// needs is made here, so that no caller can forget one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>

#include "device/device.h"
#include "engine/event_pool.h"
#include "engine/file_span.h"

namespace memsys {

enum class Direction { out, in };

class TransferEngine {
 public:
  TransferEngine(std::shared_ptr<Executor> executor, std::shared_ptr<Device> device, std::shared_ptr<IoEngine> io);
  ~TransferEngine();

  // Marks this moment of `stream`: what was issued on it so far is before the event.
  EventRef mark(StreamView stream);
  // Out of the device, into each of the targets: after everything issued so far on `producer`. The source may be
  // reused after the event.
  EventRef copy_out(std::initializer_list<void*> host_targets, const void* source, int64_t bytes, StreamView producer);
  // Into the device: after `allocated` (the target's stream, at its allocation) and `copied_out` (may be null).
  EventRef copy_in(void* target, const void* host_source, int64_t bytes, const EventRef& allocated,
                   const EventRef& copied_out);
  // Out again what a copy_in brought, in its turn: to be compared with what was sent.
  EventRef read_back(void* host_target, const void* source, int64_t bytes);
  // Runs the task once the event is complete, in order with other tasks of that direction.
  void run_after(const EventRef& event, Direction direction, Task task);

  const FileLane& file_lane() const { return file_lane_; }
  Executor& executor() const { return *file_lane_.executor; }
  Device& device() const { return *device_; }
  std::shared_ptr<Device> shared_device() const { return device_; }

 private:
  const std::shared_ptr<Device> device_;
  const std::shared_ptr<EventPool> events_;
  FileLane file_lane_;
  QueueId out_done_queue_ = 0, in_done_queue_ = 0;
  StreamView out_stream_, in_stream_;
  // Guards the lanes' streams: wait and copy of one transfer are issued together.
  std::mutex out_mutex_, in_mutex_;
};

}  // namespace memsys
