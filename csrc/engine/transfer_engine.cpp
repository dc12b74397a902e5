// See transfer_engine.h.
#include "engine/transfer_engine.h"

#include <utility>

namespace memsys {

TransferEngine::TransferEngine(std::shared_ptr<Executor> executor, std::shared_ptr<Device> device,
                               std::shared_ptr<IoEngine> io)
    : device_(std::move(device)),
      events_(std::make_shared<EventPool>(device_)),
      file_lane_{std::move(executor), std::move(io), 0, 0} {
  file_lane_.write_queue = file_lane_.executor->create_queue("file-out");
  file_lane_.read_queue = file_lane_.executor->create_queue("file-in");
  out_done_queue_ = file_lane_.executor->create_queue("out-done");
  in_done_queue_ = file_lane_.executor->create_queue("in-done");
  out_stream_ = device_->create_stream("out");
  in_stream_ = device_->create_stream("in");
  // Threads start with a first task: one that cannot start is told here, and never between a copy and its release.
  for (const QueueId queue : {file_lane_.write_queue, file_lane_.read_queue, out_done_queue_, in_done_queue_})
    file_lane_.executor->post(queue, [] {});
}

TransferEngine::~TransferEngine() {
  for (const QueueId queue : {file_lane_.write_queue, file_lane_.read_queue, out_done_queue_, in_done_queue_}) try {
      file_lane_.executor->destroy_queue(queue);
    } catch (const std::exception&) {
      // A forked child has no threads to end, and a seeded queue that cannot finish was reported by the waits.
    }
  device_->destroy_stream(out_stream_);
  device_->destroy_stream(in_stream_);
}

EventRef TransferEngine::mark(StreamView stream) {
  EventRef event = events_->take();
  device_->record(event->id(), stream);
  return event;
}

EventRef TransferEngine::copy_out(std::initializer_list<void*> host_targets, const void* source, int64_t bytes,
                                  StreamView producer) {
  const EventRef produced = mark(producer);
  EventRef copied = events_->take();
  const std::lock_guard lock(out_mutex_);
  device_->wait(out_stream_, produced->id());
  for (void* target : host_targets) device_->copy(target, source, bytes, out_stream_);
  device_->record(copied->id(), out_stream_);
  return copied;
}

EventRef TransferEngine::copy_in(void* target, const void* host_source, int64_t bytes, const EventRef& allocated,
                                 const EventRef& copied_out) {
  EventRef copied = events_->take();
  const std::lock_guard lock(in_mutex_);
  device_->wait(in_stream_, allocated->id());
  if (copied_out) device_->wait(in_stream_, copied_out->id());
  device_->copy(target, host_source, bytes, in_stream_);
  device_->record(copied->id(), in_stream_);
  return copied;
}

EventRef TransferEngine::read_back(void* host_target, const void* source, int64_t bytes) {
  EventRef copied = events_->take();
  const std::lock_guard lock(in_mutex_);
  device_->copy(host_target, source, bytes, in_stream_);
  device_->record(copied->id(), in_stream_);
  return copied;
}

void TransferEngine::run_after(const EventRef& event, Direction direction, Task task) {
  const QueueId queue = direction == Direction::out ? out_done_queue_ : in_done_queue_;
  file_lane_.executor->post(
      queue, [event, task = std::move(task)] { task(); }, device_->gate(event->id()));
}

}  // namespace memsys
