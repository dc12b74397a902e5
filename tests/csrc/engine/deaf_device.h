// A device that forgets one edge on purpose: it forwards everything to another, but does not pass on the n-th wait(),
// or opens the n-th gate too early. So the tests show that each edge of the engine is needed, and that its absence
// is found.
#pragma once

#include <string>
#include <vector>

#include "device/forwarding_device.h"

namespace engine_test {

using namespace memsys;

class DeafDevice : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  // Counted from 0, from now on; -1: none.
  void miss_wait(int at) { missed_wait_ = at, wait_count_ = 0; }
  void miss_gate(int at) { missed_gate_ = at, gate_count_ = 0; }
  int wait_count() const { return wait_count_; }
  int gate_count() const { return gate_count_; }

  void wait(StreamView stream, EventId event) override {
    if (wait_count_++ != missed_wait_) inner().wait(stream, event);
  }
  Gate gate(EventId event) override { return gate_count_++ == missed_gate_ ? Gate{} : inner().gate(event); }

  StreamView create_stream(const std::string& name) override {
    streams_.push_back(inner().create_stream(name));
    return streams_.back();
  }
  // Waits for every stream made so far: what they touched may then be freed.
  void settle() {
    const EventId event = inner().create_event();
    for (const StreamView stream : streams_) {
      inner().record(event, stream);
      inner().synchronize(event);
    }
    inner().destroy_event(event);
  }

 private:
  std::vector<StreamView> streams_;
  int missed_wait_ = -1, missed_gate_ = -1, wait_count_ = 0, gate_count_ = 0;
};

}  // namespace engine_test
