// See simulated_device.h. One mutex guards the clocks and histories; it is held while a task is posted, so that a
// lane's tasks stand in the order in which they were checked, and never while the executor runs tasks.
#include "device/simulated_device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace memsys {
namespace {

constexpr int kHostActor = 0;

ByteRange range_of(const void* pointer, int64_t bytes) {
  MEMSYS_EXPECT(bytes >= 0, InputError, "an access to " + std::to_string(bytes) + " bytes: give a count >= 0");
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  return {begin, begin + static_cast<uintptr_t>(bytes)};
}

}  // namespace

SimulatedDevice::SimulatedDevice(std::shared_ptr<Executor> executor)
    : executor_(std::move(executor)),
      knowledge_(std::make_shared<Knowledge>()),
      history_([this](int actor) { return names_[static_cast<size_t>(actor)]; }) {
  capabilities_.kind = DeviceKind::simulated;
  capabilities_.name = "simulated accelerator";
  capabilities_.host_addressable = false;
  capabilities_.needs_pinning = true;
  const std::lock_guard lock(knowledge_->mutex);
  names_.push_back("the host");
  knowledge_->clocks.emplace_back();
  streams_[0] = make_stream_locked("stream 0", Mode::compute);
}

SimulatedDevice::~SimulatedDevice() {
  for (const auto& [id, stream] : streams_) end_queue(stream.queue);
  if (!kept_) return;
  try {
    std::rethrow_exception(kept_);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "memsys: simulated device: found, and asked for by no later call: %s\n", error.what());
  }
}

void* SimulatedDevice::allocate(int64_t bytes, StreamView stream) {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const Stream& owner = find_stream_locked(stream);
  const int64_t held_bytes = bytes == 0 ? 1 : bytes;
  reclaim_locked();
  const StreamPool::Block block = pool_.take(held_bytes, owner.actor);
  if (!block.reused) std::memset(block.pointer, kPoison, static_cast<size_t>(held_bytes));
  history_.hand_out(range_of(block.pointer, held_bytes), begin_locked(owner.actor, "allocation"));
  return block.pointer;
}

void SimulatedDevice::free(void* pointer, int64_t bytes, StreamView stream) noexcept {
  const std::lock_guard lock(knowledge_->mutex);
  try {
    linger_or_give_back_locked(pointer, bytes == 0 ? 1 : bytes, stream);
  } catch (const std::exception&) {
    // The block stays out of the pool: somebody may still use it.
    if (!kept_) kept_ = std::current_exception();
  }
}

void SimulatedDevice::give_back_locked(void* pointer, int64_t bytes, StreamView stream) {
  pool_.expect_live(pointer, bytes);
  const Stream& owner = find_stream_locked(stream);
  history_.take_back(range_of(pointer, bytes), begin_locked(owner.actor, "free"));
  issue_locked(owner, [=] { std::memset(pointer, kPoison, static_cast<size_t>(bytes)); });
  pool_.give_back(pointer, bytes, owner.actor);
}

void SimulatedDevice::linger_or_give_back_locked(void* pointer, int64_t bytes, StreamView stream) {
  const auto found = users_.extract(pointer);
  Lingering block{pointer, bytes, stream, {}};
  if (!found.empty())
    for (const uintptr_t user : found.mapped())
      if (user != stream.value) block.users.push_back(record_locked(find_stream_locked({user})));
  if (block.users.empty()) return give_back_locked(pointer, bytes, stream);
  pool_.expect_live(pointer, bytes);
  lingering_.push_back(std::move(block));
}

// The host looks whether the other users of freed blocks have come so far, and so knows it.
void SimulatedDevice::reclaim_locked() {
  for (size_t index = 0; index < lingering_.size();) {
    const auto& users = lingering_[index].users;
    if (!std::all_of(users.begin(), users.end(), [](const auto& record) { return record->done.load(); })) {
      ++index;
      continue;
    }
    const Lingering block = std::move(lingering_[index]);
    lingering_.erase(lingering_.begin() + static_cast<std::ptrdiff_t>(index));
    for (const auto& record : block.users) knowledge_->clocks[kHostActor].join(record->clock);
    give_back_locked(block.pointer, block.bytes, block.owner);
  }
}

void SimulatedDevice::register_host(void* pointer, int64_t bytes) {
  const ByteRange range = range_of(pointer, bytes);
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  MEMSYS_EXPECT(range.begin % kHostBlockAlignment == 0, InputError, "host memory to pin must begin on a page");
  MEMSYS_EXPECT(registered_.emplace(range.begin, bytes).second, DeviceError,
                "host memory is pinned already: unregister it first");
  history_.forget(range);
}

void SimulatedDevice::unregister_host(void* pointer) noexcept {
  const std::lock_guard lock(knowledge_->mutex);
  const auto found = registered_.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == registered_.end()) return;
  history_.forget({found->first, found->first + static_cast<uintptr_t>(found->second)});
  registered_.erase(found);
}

StreamView SimulatedDevice::create_stream(const std::string& name) {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const StreamView stream{next_id_++};
  streams_[stream.value] = make_stream_locked(name, name.rfind("compute", 0) == 0 ? Mode::compute : Mode::lane);
  return stream;
}

void SimulatedDevice::destroy_stream(StreamView stream) noexcept {
  std::unique_lock lock(knowledge_->mutex);
  const auto found = streams_.find(stream.value);
  if (found == streams_.end() || stream == StreamView{}) return;
  const QueueId queue = found->second.queue;
  streams_.erase(found);
  lock.unlock();
  end_queue(queue);
}

EventId SimulatedDevice::create_event() {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const EventId event{next_id_++};
  events_[event.value] = std::make_shared<Record>();
  events_[event.value]->done = true;
  return event;
}

void SimulatedDevice::destroy_event(EventId event) noexcept {
  const std::lock_guard lock(knowledge_->mutex);
  events_.erase(event.value);
}

void SimulatedDevice::record(EventId event, StreamView stream) {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const Stream& recorded = find_stream_locked(stream);
  auto& slot = find_event_locked(event);
  slot = record_locked(recorded);
}

std::shared_ptr<SimulatedDevice::Record> SimulatedDevice::record_locked(const Stream& stream) {
  const auto record = std::make_shared<Record>();
  record->clock = *begin_locked(stream.actor, "record").clock;
  executor_->post(stream.queue, [record, executor = executor_.get()] {
    record->done = true;
    executor->notify();
  });
  return record;
}

void SimulatedDevice::wait(StreamView stream, EventId event) {
  std::shared_ptr<Record> record;
  {
    const std::lock_guard lock(knowledge_->mutex);
    raise_kept_locked();
    record = find_event_locked(event);
    const Stream& waiting = find_stream_locked(stream);
    knowledge_->clocks[static_cast<size_t>(waiting.actor)].join(record->clock);
    if (waiting.mode == Mode::lane) {
      executor_->post(waiting.queue, [] {}, {[record] { return record->done.load(); }, {}});
      return;
    }
  }
  if (!record->done) executor_->wait_until([&] { return record->done.load(); });
}

bool SimulatedDevice::query(EventId event) {
  const std::shared_ptr<Record> record = record_of(event);
  if (!record->done) return false;
  learn(*record);
  return true;
}

void SimulatedDevice::synchronize(EventId event) {
  const std::shared_ptr<Record> record = record_of(event);
  if (!record->done) executor_->wait_until([&] { return record->done.load(); });
  learn(*record);
}

Gate SimulatedDevice::gate(EventId event) {
  const auto ready = [record = record_of(event), knowledge = knowledge_] {
    if (!record->done) return false;
    const std::lock_guard lock(knowledge->mutex);
    knowledge->clocks[kHostActor].join(record->clock);
    return true;
  };
  return {ready, {}};
}

void SimulatedDevice::copy(void* target, const void* source, int64_t bytes, StreamView stream) {
  const ByteRange from = range_of(source, bytes), into = range_of(target, bytes);
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const Stream& lane = find_stream_locked(stream);
  if (bytes == 0) return;
  history_.read(from, begin_locked(lane.actor, "a copy's read"), Author::transfer);
  history_.write(into, begin_locked(lane.actor, "a copy's write"), Author::transfer);
  issue_locked(lane, [=] { std::memcpy(target, source, static_cast<size_t>(bytes)); });
}

void SimulatedDevice::fill(void* target, unsigned char value, int64_t bytes, StreamView stream) {
  const ByteRange into = range_of(target, bytes);
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const Stream& lane = find_stream_locked(stream);
  if (bytes == 0) return;
  history_.write(into, begin_locked(lane.actor, "a fill"), Author::transfer);
  issue_locked(lane, [=] { std::memset(target, value, static_cast<size_t>(bytes)); });
}

void SimulatedDevice::note_use(const void* pointer, int64_t bytes, StreamView stream, Use use) {
  const ByteRange range = range_of(pointer, bytes);
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  const int actor = actor_of_locked(stream);
  if (use == Use::read)
    history_.read(range, begin_locked(actor, "an operation's read"), Author::program);
  else
    history_.write(range, begin_locked(actor, "an operation's write"), Author::program);
}

void SimulatedDevice::note_free(const void* pointer, int64_t bytes, StreamView stream) {
  const ByteRange range = range_of(pointer, bytes);
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  history_.give_away(range, begin_locked(actor_of_locked(stream), "free"));
}

void SimulatedDevice::note_user(const void* pointer, StreamView stream) {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  find_stream_locked(stream);
  if (pool_.is_live(pointer)) users_[pointer].insert(stream.value);
}

SimulatedDevice::Stream SimulatedDevice::make_stream_locked(const std::string& name, Mode mode) {
  const int actor = static_cast<int>(names_.size());
  names_.push_back(name == "stream 0" ? name : "stream '" + name + "'");
  knowledge_->clocks.emplace_back();
  return {actor, executor_->create_queue(name), mode};
}

const SimulatedDevice::Stream& SimulatedDevice::find_stream_locked(StreamView stream) const {
  const auto found = streams_.find(stream.value);
  MEMSYS_EXPECT(found != streams_.end(), InputError,
                "the simulated device has no stream " + std::to_string(stream.value) +
                    ": use 0 or one from create_stream() that is not destroyed");
  return found->second;
}

int SimulatedDevice::actor_of_locked(StreamView stream) const {
  return stream == kHostStream ? kHostActor : find_stream_locked(stream).actor;
}

std::shared_ptr<SimulatedDevice::Record>& SimulatedDevice::find_event_locked(EventId event) {
  const auto found = events_.find(event.value);
  MEMSYS_EXPECT(
      found != events_.end(), InputError,
      "the simulated device has no event " + std::to_string(event.value) + ": it was destroyed or never created");
  return found->second;
}

std::shared_ptr<SimulatedDevice::Record> SimulatedDevice::record_of(EventId event) {
  const std::lock_guard lock(knowledge_->mutex);
  raise_kept_locked();
  return find_event_locked(event);
}

// The next operation of an actor: it comes after all that the host knows at its issue.
Operation SimulatedDevice::begin_locked(int actor, const char* name) {
  VectorClock& clock = knowledge_->clocks[static_cast<size_t>(actor)];
  clock.join(knowledge_->clocks[kHostActor]);
  clock.advance(actor);
  return {actor, &clock, name};
}

void SimulatedDevice::raise_kept_locked() {
  if (kept_) std::rethrow_exception(std::exchange(kept_, nullptr));
}

void SimulatedDevice::learn(const Record& record) {
  const std::lock_guard lock(knowledge_->mutex);
  knowledge_->clocks[kHostActor].join(record.clock);
}

template <typename Work>
void SimulatedDevice::issue_locked(const Stream& stream, Work work) {
  if (stream.mode == Mode::compute)
    work();
  else
    executor_->post(stream.queue, std::move(work));
}

void SimulatedDevice::end_queue(QueueId queue) noexcept {
  try {
    executor_->destroy_queue(queue);
  } catch (const std::exception&) {
    // Tasks that can never run were dropped; the wait that needed them has reported it.
  }
}

std::shared_ptr<Device> make_simulated_device(std::shared_ptr<Executor> executor) {
  return std::make_shared<SimulatedDevice>(std::move(executor));
}

}  // namespace memsys
