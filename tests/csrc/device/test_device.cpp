// The contract of device.h, run on every device.
#include <atomic>
#include <thread>
#include <vector>

#include "csrc/device/devices.h"

namespace {

using namespace memsys;
using Bytes = std::vector<unsigned char>;

constexpr int64_t kCount = 10'000;

Bytes pattern(unsigned char first) {
  Bytes bytes(kCount);
  for (size_t index = 0; index < bytes.size(); ++index) bytes[index] = static_cast<unsigned char>(first + index * 7);
  return bytes;
}

// A stream and an event that end with their scope.
struct Lane {
  explicit Lane(Device& owner, const std::string& name) : device(owner), stream(owner.create_stream(name)) {
    event = owner.create_event();
  }
  ~Lane() {
    device.destroy_event(event);
    device.destroy_stream(stream);
  }
  void record() { device.record(event, stream); }
  Device& device;
  StreamView stream;
  EventId event;
};

struct Block {
  explicit Block(Device& owner, StreamView on = {}) : device(owner), stream(on), pointer(owner.allocate(kCount, on)) {}
  ~Block() { device.free(pointer, kCount, stream); }
  Device& device;
  StreamView stream;
  void* pointer;
};

// Lets a lane use blocks just allocated on stream 0.
void order_after_allocation(Device& device, const Lane& lane) {
  const EventId fresh = device.create_event();
  device.record(fresh, {});
  device.wait(lane.stream, fresh);
  device.destroy_event(fresh);
}

// Lets stream 0 free what the lane used.
void order_before_free(Device& device, Lane& lane) {
  lane.record();
  device.wait({}, lane.event);
}

}  // namespace

DEVICE_TEST(bytes_go_to_the_device_and_back) {
  Device& device = *bench.device;
  Lane lane(device, "lane");
  const Bytes sent = pattern(3);
  Bytes received(kCount);
  for (const StreamView stream : {StreamView{}, lane.stream}) {
    const Block block(device, stream);
    device.copy(block.pointer, sent.data(), kCount, stream);
    device.copy(received.data(), block.pointer, kCount, stream);
    device.record(lane.event, stream);
    device.synchronize(lane.event);
    device.note_use(received.data(), kCount, kHostStream, Use::read);
    CHECK(received == sent);
    CHECK(device.query(lane.event));
    received.assign(kCount, 0);
    device.note_use(received.data(), kCount, kHostStream, Use::write);
  }
}

DEVICE_TEST(an_event_orders_two_streams) {
  Device& device = *bench.device;
  Lane first(device, "first"), second(device, "second");
  Bytes received(kCount);
  const Block block(device), other(device);
  order_after_allocation(device, first);
  order_after_allocation(device, second);
  for (unsigned char round = 0; round < 10; ++round) {
    device.fill(block.pointer, round, kCount, first.stream);
    first.record();
    device.wait(second.stream, first.event);
    device.copy(other.pointer, block.pointer, kCount, second.stream);
    device.copy(received.data(), other.pointer, kCount, second.stream);
    second.record();
    device.wait(first.stream, second.event);
    device.synchronize(second.event);
    CHECK(received == Bytes(kCount, round));
  }
  order_before_free(device, second);
  order_before_free(device, first);
}

DEVICE_TEST(stream_0_waits_for_a_lane) {
  Device& device = *bench.device;
  Lane lane(device, "lane");
  Bytes received(kCount);
  const Block block(device);
  order_after_allocation(device, lane);
  device.fill(block.pointer, 42, kCount, lane.stream);
  order_before_free(device, lane);
  device.copy(received.data(), block.pointer, kCount, {});
  device.record(lane.event, {});
  device.synchronize(lane.event);
  CHECK(received == Bytes(kCount, 42));
}

DEVICE_TEST(an_event_never_recorded_is_complete) {
  Device& device = *bench.device;
  const EventId event = device.create_event();
  CHECK(device.query(event));
  device.synchronize(event);
  device.wait({}, event);
  CHECK(device.gate(event).ready());
  device.destroy_event(event);
}

DEVICE_TEST(a_wait_keeps_the_record_it_saw) {
  Device& device = *bench.device;
  Lane writer(device, "writer"), reader(device, "reader"), idle(device, "idle");
  Bytes received(kCount);
  const Block block(device, writer.stream);
  const EventId shared = device.create_event();
  device.fill(block.pointer, 9, kCount, writer.stream);
  device.record(shared, writer.stream);
  device.wait(reader.stream, shared);
  device.record(shared, idle.stream);
  device.copy(received.data(), block.pointer, kCount, reader.stream);
  device.destroy_event(shared);
  reader.record();
  device.synchronize(reader.event);
  CHECK(received == Bytes(kCount, 9));
  device.wait(writer.stream, reader.event);
}

DEVICE_TEST(a_destroyed_stream_finishes_its_work) {
  Device& device = *bench.device;
  Bytes received(kCount);
  const Bytes sent = pattern(5);
  const EventId event = device.create_event();
  {
    Lane lane(device, "short-lived");
    device.copy(received.data(), sent.data(), kCount, lane.stream);
    device.record(event, lane.stream);
  }
  device.synchronize(event);
  CHECK(received == sent);
  device.destroy_event(event);
}

DEVICE_TEST(a_gate_opens_after_its_event) {
  Device& device = *bench.device;
  Lane lane(device, "lane");
  const QueueId queue = bench.executor->create_queue("file");
  const Bytes sent = pattern(8);
  Bytes received(kCount), written(kCount);
  std::atomic<bool> done{false};
  device.copy(received.data(), sent.data(), kCount, lane.stream);
  lane.record();
  bench.executor->post(
      queue,
      [&] {
        device.note_use(received.data(), kCount, kHostStream, Use::read);
        written = received;
        done = true;
        bench.executor->notify();
      },
      device.gate(lane.event));
  bench.executor->wait_until([&] { return done.load(); });
  bench.executor->destroy_queue(queue);
  CHECK(written == sent);
}

DEVICE_TEST(too_much_memory_is_a_budget_error) {
  std::string message;
  try {
    static_cast<void>(bench.device->allocate(int64_t{1} << 56, {}));
  } catch (const BudgetError& error) {
    message = error.what();
  }
  CHECK(message.find("GiB") != std::string::npos);
  const Block block(*bench.device);  // and nothing is broken afterwards
  CHECK(block.pointer != nullptr);
}

DEVICE_TEST(negative_counts_are_refused) {
  Bytes bytes(8);
  CHECK_THROWS(bench.device->allocate(-1, {}), InputError);
  CHECK_THROWS(bench.device->copy(bytes.data(), bytes.data(), -1, {}), InputError);
  CHECK_THROWS(bench.device->fill(bytes.data(), 0, -1, {}), InputError);
}

DEVICE_TEST(threads_share_a_device) {
  Device& device = *bench.device;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned char index = 0; index < 4; ++index)
    threads.emplace_back([&, index] {
      try {
        Lane lane(device, "lane");
        const Bytes sent = pattern(index);
        Bytes received(kCount);
        const Block block(device, lane.stream);
        device.copy(block.pointer, sent.data(), kCount, lane.stream);
        device.copy(received.data(), block.pointer, kCount, lane.stream);
        lane.record();
        device.synchronize(lane.event);
        if (received != sent) ++wrong;
      } catch (const std::exception&) {
        ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(wrong.load(), 0);
}

TEST(host_devices_name_unknown_handles) {
  devices::on_host_devices([](devices::Bench& bench) {
    Bytes bytes(8);
    CHECK_THROWS(bench.device->copy(bytes.data(), bytes.data() + 4, 4, StreamView{999}), InputError);
    CHECK_THROWS(bench.device->record(EventId{999}, {}), InputError);
    CHECK_THROWS(bench.device->query(EventId{999}), InputError);
  });
}

TEST(cuda_status_says_what_is_there) {
  const CudaStatus status = cuda_status();
  CHECK(!status.message.empty());
  CHECK(status.message.find('\n') == std::string::npos);
  CHECK(status.built == (status.runtime_version > 0));
  if (status.device_count > 0) return;
  CHECK(status.message.find("going on with the CPU") != std::string::npos ||
        status.message.find("built without CUDA") != std::string::npos);
  CHECK_THROWS(make_cuda_device(0), DeviceError);
}

TEST(a_faulty_device_refuses_to_pin_when_told_and_is_the_inner_one_else) {
  const auto faults = std::make_shared<memsys::FaultCounter>();
  const auto executor = memsys::make_seeded_executor(1);
  const auto device = memsys::make_faulty_device(memsys::make_simulated_device(executor), faults);
  CHECK(device->capabilities().needs_pinning);
  alignas(4096) static unsigned char block[4096];
  faults->arm(0, memsys::FaultSpan::once);
  CHECK_THROWS(device->register_host(block, sizeof block), memsys::DeviceError);
  device->register_host(block, sizeof block);
  void* there = device->allocate(64, {});
  device->fill(there, 7, 64, {});
  const memsys::EventId event = device->create_event();
  device->record(event, {});
  device->synchronize(event);
  CHECK(device->query(event));
  device->destroy_event(event);
  device->free(there, 64, {});
  device->unregister_host(block);
  CHECK_EQUAL(faults->attempt_count(), int64_t{2});
}
